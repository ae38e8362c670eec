package migrate_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// A name that no API server knows would select nothing, and look like a migration that is through.
func TestUnknownNames(t *testing.T) {
	t.Parallel()
	groups := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path == "/apis" {
			_, _ = w.Write([]byte(`{"groups":[{"name":"apps"},{"name":"example.com"}]}`))
		}
		if r.URL.Path == "/apis/apps" {
			_, _ = w.Write([]byte(`{"versions":[{"groupVersion":"apps/v1"}],"preferredVersion":{"groupVersion":"apps/v1"}}`))
		}
		if r.URL.Path == "/apis/apps/v1" {
			_, _ = w.Write([]byte(`{"resources":[{"name":"deployments","namespaced":true}]}`))
		}
		return strings.HasPrefix(r.URL.Path, "/apis/apps") || r.URL.Path == "/apis" || r.URL.Path == "/apis/exmaple.com" && answer(w, 404, "NotFound", "not found")
	}
	for name, want := range map[string]string{
		"sercets": "did you mean secrets?", "deployments": "did you mean deployments.apps?", "widget.example.com": "did you mean widgets.example.com?",
		"widgets.exmaple.com": "did you mean widgets.example.com?", "widgets": "did you mean widgets.example.com?", "unheardof.example.com": "kubectl api-resources",
	} {
		s := newStore()
		s.put("secrets/ns/plain", "")
		a := newAPI(t, s, newKey, groups)
		opts := options(t, s, a)
		opts.Resources, opts.AllowEmpty = []string{"secrets", name}, true
		out, err := migrate.Run(t.Context(), opts)
		if out != nil || !errors.Is(err, migrate.ErrUnknown) || !strings.Contains(hint.Of(err), want) {
			t.Errorf("%s: %+v, %v; hint %q", name, out, err, hint.Of(err))
		}
		if a.requests("POST")+a.requests("PATCH") != 0 {
			t.Errorf("%s: something was written", name)
		}
	}
}

// A name that is served and of which there is no object is a finding all the same, unless that is fine.
func TestNoObject(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 3, oldKey)
	opts := options(t, s, newAPI(t, s, newKey, nil))
	opts.Resources = []string{"secrets", "widgets.example.com"}
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || out.Clean() || out.Report.Findings[0].Resource != "widgets.example.com" {
		t.Errorf("outcome: %+v, %v", out, err)
	}
	opts.AllowEmpty = true
	if out, err = migrate.Run(t.Context(), opts); err != nil || !out.Clean() {
		t.Errorf("allowed: %+v, %v", out, err)
	}
}

// configuration is an EncryptionConfiguration that writes Secrets by the KMS provider of that name.
func configuration(t *testing.T, provider string) *encconfig.Config {
	t.Helper()
	c, err := encconfig.Parse([]byte(`{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources: [secrets], providers: [
		{kms: {apiVersion: v2, name: ` + provider + `, endpoint: "unix:///s"}}, {kms: {apiVersion: v2, name: hsm-kms, endpoint: "unix:///s"}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Objects under the right key, and by another name of the provider than the file has, are rewritten, and no server is proven
// that writes by another one.
func TestRenamedProvider(t *testing.T) {
	t.Parallel()
	s := newStore()
	fill(s, 18, newKey)
	a := newAPI(t, s, newKey, nil)
	opts := options(t, s, a)
	out, err := migrate.Run(t.Context(), opts)
	if err != nil || out.Found != 0 || !out.Clean() {
		t.Fatalf("without a file: %+v, %v", out, err)
	}
	opts.Expected = configuration(t, "kms-b")
	out, err = migrate.Run(t.Context(), opts)
	if !errors.Is(err, migrate.ErrUnproven) || !strings.Contains(migrate.Describe(out.Servers[0]), "writes secrets as kms:v2:hsm-kms, and the EncryptionConfiguration has kms:v2:kms-b") {
		t.Fatalf("a server that has not read the file: %+v, %v", out, err)
	}
	a.mu.Lock()
	a.name = "kms-b"
	a.mu.Unlock()
	out, err = migrate.Run(t.Context(), opts)
	if err != nil || out.Found != 18 || out.Rewritten != 18 || !out.Clean() {
		t.Fatalf("outcome: %+v, %v", out, err)
	}
	if p := out.Servers[0]; p.Writes != "kms:v2:kms-b" || p.Expected != p.Writes || !p.OK {
		t.Errorf("proof: %+v", p)
	}
	opts.Resources = []string{"secrets", "configmaps"}
	if out, err = migrate.Run(t.Context(), opts); out != nil || !errors.Is(err, migrate.ErrNames) || !strings.Contains(err.Error(), "plain text for configmaps") {
		t.Errorf("a resource that the file leaves in plain text: %+v, %v", out, err)
	}
}

// passedOn answers that the group example.com is behind a Service.
func passedOn(w http.ResponseWriter, r *http.Request, _ int) bool {
	if r.URL.Path == "/apis/apiregistration.k8s.io/v1/apiservices" {
		_, _ = w.Write([]byte(`{"kind":"List","items":[{"spec":{"group":"apps"}},{"spec":{"group":"example.com","service":{"namespace":"wardle","name":"api"}}}]}`))
		return true
	}
	if r.URL.Path == "/apis/discovery.k8s.io/v1/namespaces/wardle/endpointslices" {
		_, _ = w.Write([]byte(`{"kind":"List","items":[{"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"]}]},{"addressType":"IPv6","endpoints":[{"addresses":["fd00::1"]}]}]}`))
		return true
	}
	if r.URL.Path == "/apis/apiregistration.k8s.io" {
		_, _ = w.Write([]byte(`{}`))
		return true
	}
	return false
}

// Requests for an aggregated API go to any of its API servers: what kube-apiserver shows proves nothing about the others.
func TestAggregated(t *testing.T) {
	t.Parallel()
	s := newStore()
	for _, name := range []string{"a", "b", "c"} {
		s.put("example.com/widgets/ns/"+name, oldKey)
	}
	notAggregator := func(w http.ResponseWriter, r *http.Request, _ int) bool {
		return strings.HasPrefix(r.URL.Path, "/apis/apiregistration.k8s.io") && answer(w, 404, "NotFound", "not found")
	}
	front := newAPI(t, s, newKey, passedOn)
	good, plain := newAPI(t, s, newKey, notAggregator), newAPI(t, s, "", notAggregator)
	opts := options(t, s, front)
	opts.Resources = []string{"*.example.com"}
	for _, dry := range []bool{true, false} {
		opts.DryRun = dry
		out, err := migrate.Run(t.Context(), opts)
		if !errors.Is(err, migrate.ErrUnproven) || out.Rewritten != 0 || !strings.Contains(migrate.Describe(out.Servers[0]), "the Service wardle/api, widgets.example.com:") ||
			!strings.Contains(out.Servers[0].Error, "--group-server example.com=URL") {
			t.Errorf("not named, dry run %v: %+v, %v", dry, out, err)
		}
	}
	for says, named := range map[string][]string{
		"is kube-apiserver":                   {"example.com=" + front.http.URL, "example.com=" + good.http.URL},
		"no APIService passes the group apps": {"apps=" + good.http.URL},
		"has 2 API servers, and 1":            {"example.com=" + good.http.URL},
		"does not have the form":              {"example.com"},
		"is given twice":                      {"example.com=" + good.http.URL, "example.com=" + good.http.URL + "/"},
	} {
		if _, _, err := connect(t, []string{front.http.URL}, named); err == nil || !strings.Contains(err.Error(), says) || says != "is given twice" && hint.Of(err) == "" {
			t.Errorf("%q: %v, hint %q", named, err, hint.Of(err))
		}
	}
	opts = optionsOf(t, s, []string{front.http.URL}, []string{"example.com=" + good.http.URL, "example.com=" + plain.http.URL})
	opts.Resources = []string{"*.example.com"}
	out, err := migrate.Run(t.Context(), opts)
	if !errors.Is(err, migrate.ErrUnproven) || len(out.Servers) != 2 || !out.Servers[0].OK || out.Servers[1].OK || out.Servers[1].Writes != "plain text" || out.Servers[1].Server != plain.http.URL {
		t.Errorf("one in plain text: %+v, %v", out, err)
	}
	plain.setKey(newKey)
	out, err = migrate.Run(t.Context(), opts)
	if err != nil || !out.Clean() || front.requests("PATCH") != 0 {
		t.Errorf("outcome: %+v, %v", out, err)
	}
}
