package live_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Errors of the connection to etcd say what is wrong and what to look at, and come soon.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	stranger := httptest.NewUnstartedServer(http.NotFoundHandler())
	stranger.EnableHTTP2 = true
	stranger.Config.ErrorLog = log.New(io.Discard, "", 0)
	stranger.StartTLS() // its certificate is signed by nobody
	t.Cleanup(stranger.Close)
	for endpoint, said := range map[string]string{"http://127.0.0.1:1": "connection refused", stranger.URL: "certificate"} {
		t.Run(said, func(t *testing.T) {
			t.Parallel()
			e, err := live.Open(live.Config{Endpoints: []string{endpoint}, Prefixes: []string{"/registry"}})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			_, err = e.Read(t.Context(), evidence.Pinned, func([]evidence.Object) error { return nil })
			if err == nil || !strings.Contains(err.Error(), said) || !strings.Contains(hint.Of(err), endpoint) {
				t.Errorf("error = %v (hint %q), want %q", err, hint.Of(err), said)
			}
		})
	}
	if _, err := live.Open(live.Config{Endpoints: []string{"https://127.0.0.1:1"}, CAFile: filepath.Join(t.TempDir(), "none")}); hint.Of(err) == "" {
		t.Errorf("a CA that is not there: %v", err)
	}
}
