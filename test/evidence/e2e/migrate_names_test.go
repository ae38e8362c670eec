//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/kube"
)

// What a real API server says of names, a provider that was renamed, and a group that it passes on.
func TestMigrateNames(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	encrypts(t, w.cluster, w.hsm, identity)
	must(t, w.cluster.CreateNamespace(t.Context(), namespace))
	w.customResource(t)
	w.populate(t, 20, 5, 5)
	m := w.migrator(t)

	t.Log("names that it does not serve")
	for name, meant := range map[string]string{
		"sercets": "secrets", "deployments": "deployments.apps", "widget.example.com": kube.Widgets, "widgets": kube.Widgets, "secrets.apps": "secrets",
	} {
		o := run(t, m.plugin, m.args("--resources", name, "--allow-empty", "--dry-run")[1:]...).want(t, 2)
		if !strings.Contains(o.errOut, "hint: did you mean "+meant+"?") {
			t.Errorf("%s: %s", name, o.errOut)
		}
	}

	t.Log("a provider with another name, and the same plugin and key")
	renamed := func(resource string) map[string]any {
		p := w.hsm(resource)
		p["kms"].(map[string]any)["name"] = "renamed-" + strings.ReplaceAll(resource, ".", "-")
		return p
	}
	encrypts(t, w.cluster, renamed, w.hsm, identity)
	if out, _ := m.run(t, 0); out.Found != 0 {
		t.Errorf("without the file: %+v", out)
	}
	var r report
	o := run(t, w.plugin, "report", "--endpoints", w.cluster.EtcdURL(), "--encryption-config", w.cluster.EncryptionConfig(), "-o", "json").want(t, 1)
	if o.into(t, &r); len(r.Findings) == 0 {
		t.Error("the report finds nothing under the old name")
	}
	out, _ := m.run(t, 0, "--encryption-config", w.cluster.EncryptionConfig())
	if out.Rewritten < 30 || out.Failed != 0 || len(out.Report.Findings) != 0 {
		t.Errorf("outcome: %+v", out)
	}
	for _, p := range out.Servers {
		if want := "kms:v2:renamed-" + strings.ReplaceAll(p.Resource, ".", "-"); !p.OK || p.Writes != want {
			t.Errorf("proof: %+v, want %s", p, want)
		}
	}
	encrypts(t, w.cluster, renamed) // it reads all of it without the old entry

	t.Log("a group that is passed on to a Service")
	const service = "/apis/apiregistration.k8s.io/v1/apiservices"
	must(t, w.cluster.Do(t.Context(), http.MethodPost, service, map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v9.example.com"},
		"spec": map[string]any{
			"group": "example.com", "version": "v9", "groupPriorityMinimum": 1, "versionPriority": 1, "insecureSkipTLSVerify": true,
			"service": map[string]any{"namespace": namespace, "name": "widgets-api"},
		},
	}, nil))
	refused, o := m.run(t, 1, "--resources", kube.Widgets)
	if refused.Rewritten != 0 || !strings.Contains(o.errOut, "the Service "+namespace+"/widgets-api, "+kube.Widgets) || !strings.Contains(o.errOut, "hint: give --group-server") {
		t.Errorf("%+v: %s", refused, o.errOut)
	}
	o = run(t, m.plugin, m.args("--resources", kube.Widgets, "--group-server", "example.com="+w.cluster.URL())[1:]...)
	if o.code != 2 {
		t.Errorf("kube-apiserver itself is taken for one of the group's: %d, %s", o.code, o.errOut)
	}
}
