//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
)

func (w *rig) post(t *testing.T, path string, object map[string]any) {
	t.Helper()
	must(t, w.cluster.Do(t.Context(), http.MethodPost, path, object, nil))
}

// Objects that an API server treats in a way of their own are rewritten like any other; one that a policy guards is named.
func TestMigrateOdd(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	encrypts(t, w.cluster, identity, w.hsm)
	must(t, w.cluster.CreateNamespace(t.Context(), namespace))
	w.customResource(t)
	w.populate(t, 3, 3, 2)
	secrets := "/api/v1/namespaces/" + namespace + "/secrets"
	secret := func(name string, metadata, more map[string]any) {
		object := map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": name}, "data": map[string]any{"a": base64.StdEncoding.EncodeToString([]byte("b"))}}
		for k, v := range metadata {
			object["metadata"].(map[string]any)[k] = v
		}
		for k, v := range more {
			object[k] = v
		}
		w.post(t, secrets, object)
	}
	secret("immutable", nil, map[string]any{"immutable": true})
	secret("finalizing", map[string]any{"finalizers": []string{"example.com/stays"}}, nil)
	must(t, w.cluster.Do(t.Context(), http.MethodDelete, secrets+"/finalizing", nil, nil))
	secret(strings.Repeat("a", 200)+".b--c.d", nil, nil)
	secret("guarded", map[string]any{"labels": map[string]string{"guarded": "yes"}}, nil)
	w.post(t, "/api/v1/namespaces/"+namespace+"/serviceaccounts", map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "sa"}})
	secret("sa-token", map[string]any{"annotations": map[string]string{"kubernetes.io/service-account.name": "sa"}}, map[string]any{"type": "kubernetes.io/service-account-token"})
	const admission = "/apis/admissionregistration.k8s.io/v1/"
	w.post(t, admission+"validatingadmissionpolicies", map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": map[string]any{"name": "guard"},
		"spec": map[string]any{
			"matchConstraints": map[string]any{"resourceRules": []any{map[string]any{"apiGroups": []string{""}, "apiVersions": []string{"v1"}, "operations": []string{"UPDATE"}, "resources": []string{"secrets"}}}},
			"validations":      []any{map[string]any{"expression": "!has(object.metadata.labels) || !('guarded' in object.metadata.labels)", "message": "hands off"}},
		},
	})
	w.post(t, admission+"validatingadmissionpolicybindings", map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": map[string]any{"name": "guard"},
		"spec": map[string]any{"policyName": "guard", "validationActions": []string{"Deny"}},
	})
	encrypts(t, w.cluster, w.hsm, identity)
	m := w.migrator(t)

	t.Log("a namespace that is not there, and one that is going away")
	before := w.revisions(t)
	m.resources = "secrets,configmaps"
	if _, o := m.run(t, 1, "--namespace", "nowhere", "--wait", "0s"); !strings.Contains(o.errOut, "there is no namespace nowhere") {
		t.Errorf("said: %s", o.errOut)
	}
	must(t, w.cluster.CreateNamespace(t.Context(), "going"))
	var going map[string]any
	must(t, w.cluster.Do(t.Context(), http.MethodDelete, "/api/v1/namespaces/going", nil, &going))
	if _, o := m.run(t, 1, "--namespace", "going", "--wait", "0s"); !strings.Contains(o.errOut, "because it is being terminated") {
		t.Errorf("said: %s", o.errOut)
	}
	for key, revision := range w.revisions(t) {
		if before[key] != revision {
			t.Errorf("%s was written", key)
		}
	}

	t.Log("through")
	m.resources = migrated
	out, _ := m.run(t, 1, "--rate", "500")
	if out.Failed != 1 || !strings.HasSuffix(out.Failures[0].Key, "/guarded") || !strings.Contains(out.Failures[0].Reason, "hands off") {
		t.Errorf("outcome: %+v", out)
	}
	for key, kv := range w.stored(t) {
		if !strings.Contains(string(kv.Value), w.keyID) && !strings.HasSuffix(key, "/guarded") {
			t.Errorf("%s is not under the key", key)
		}
	}
	w.noCanaries(t)
}

// The kubeconfig of another cluster than the etcd's: it is noticed before anything is rewritten, and nothing is left there.
func TestMigrateElsewhere(t *testing.T) {
	t.Parallel()
	w, other := newRig(t), newRig(t)
	for _, it := range []*rig{w, other} {
		encrypts(t, it.cluster, identity, it.hsm)
		must(t, it.cluster.CreateNamespace(t.Context(), namespace))
	}
	for i := range 50 { // two clusters that were made alike have the same revisions, which would show the object of one as the other's
		must(t, other.cluster.CreateConfigMap(t.Context(), namespace, fmt.Sprintf("ahead-%d", i), map[string]string{"a": "b"}))
	}
	for _, it := range []*rig{w, other} {
		it.customResource(t)
		it.populate(t, 5, 5, 5)
	}
	m, strange := w.migrator(t), other.migrator(t)
	m.servers, m.kubeconfig = strange.servers, strange.kubeconfig
	before, beforeOther := w.revisions(t), other.revisions(t)
	for resources, said := range map[string]string{"secrets": "what it writes is not in this etcd", "widgets.example.com": "or this is not its etcd"} {
		m.resources = resources
		if _, o := m.run(t, 1, "--wait", "0s"); !strings.Contains(o.errOut, said) {
			t.Errorf("said: %s", o.errOut)
		}
	}
	if !maps.Equal(before, w.revisions(t)) || !maps.Equal(beforeOther, other.revisions(t)) {
		t.Error("something was written, or was left")
	}
}
