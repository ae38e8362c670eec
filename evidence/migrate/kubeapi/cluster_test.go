package kubeapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func TestClusterUID(t *testing.T) {
	t.Parallel()
	const endless = "..."
	const uid = "0b7e2d3c-6d2a-4c55-9f0e-8f1f6c1d2a3b"
	for name, test := range map[string]struct {
		code   int
		answer string
		want   string
		err    string
	}{
		"its UID":        {200, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"kube-system","uid":"` + uid + `"}}`, uid, ""},
		"no permission":  {403, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"namespaces is forbidden","reason":"Forbidden","code":403}`, "", "is forbidden"},
		"no JSON":        {200, `<html>`, "", "asking http"},
		"without an end": {200, `{"metadata":{"uid":"` + endless, "", "asking http"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.Path)
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(test.code)
				text, goesOn := strings.CutSuffix(test.answer, endless)
				chunk := make([]byte, 1<<20)
				for _, err := fmt.Fprint(w, text); goesOn && err == nil; _, err = w.Write(chunk) { // until the client has had enough
				}
			}))
			t.Cleanup(server.Close)
			got, err := kubeapi.ClusterUID(t.Context(), kubeapi.Config{Kubeconfig: kubeconfig(t, "c", server.URL)})
			if got != test.want || (err == nil) != (test.err == "") || err != nil && (!strings.Contains(err.Error(), test.err) || hint.Of(err) == "") {
				t.Errorf("%q, %v", got, err)
			}
			if len(asked) != 1 || asked[0] != "GET /api/v1/namespaces/kube-system" {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}
