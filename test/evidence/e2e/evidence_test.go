//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// The parts of the documented JSON that the tests look at.
type report struct {
	Revision    int64      `json:"revision"`
	Objects     int64      `json:"objects"`
	Plaintext   int64      `json:"plaintext"`
	Undecodable int64      `json:"undecodable"`
	Resources   []resource `json:"resources"`
	History     []resource `json:"history"`
	Findings    []struct {
		Resource, Problem string
		Objects           int64
	} `json:"findings"`
}

type resource struct {
	Resource    string `json:"resource"`
	Total       int64  `json:"total"`
	Plaintext   int64  `json:"plaintext"`
	Undecodable int64  `json:"undecodable"`
	Keys        []struct {
		Provider string `json:"provider"`
		KeyID    string `json:"keyID"`
		Objects  int64  `json:"objects"`
		DEKs     int64  `json:"deks"`
	} `json:"keys"`
}

// line is a resource in one text: "plain 1, kms:v2:hsm-kms KEY 2 (1)".
func line(resources []resource, name string) string {
	i := slices.IndexFunc(resources, func(r resource) bool { return r.Resource == name })
	if i < 0 {
		return "none"
	}
	r := resources[i]
	parts := []string{fmt.Sprintf("total %d plain %d broken %d", r.Total, r.Plaintext, r.Undecodable)}
	for _, k := range r.Keys {
		parts = append(parts, fmt.Sprintf("%s %s %d (%d)", k.Provider, k.KeyID, k.Objects, k.DEKs))
	}
	return strings.Join(parts, ", ")
}

type verification struct {
	OK       bool  `json:"ok"`
	Objects  int64 `json:"objects"`
	Verified int64 `json:"verified"`
	Failed   int64 `json:"failed"`
	Others   int64 `json:"otherProviders"`
	DEKs     int64 `json:"deks"`
	Failures []struct {
		Key, Reason string
	} `json:"failures"`
}

// A provider of an EncryptionConfiguration.
func provider(kind string, fields any) map[string]any { return map[string]any{kind: fields} }

func keyed(kind, name string) map[string]any {
	return provider(kind, map[string]any{"keys": []any{map[string]any{"name": name, "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}}})
}

// history lives through three providers before the HSM's: what a cluster that was converted looks like.
func history(t *testing.T, w *rig) {
	t.Helper()
	identity, cbc, box := provider("identity", map[string]any{}), keyed("aescbc", "key1"), keyed("secretbox", "box1")
	kms := provider("kms", map[string]any{"apiVersion": "v2", "name": kube.ProviderName, "endpoint": "unix://" + w.plugin.Socket()})
	w.under(t, identity)
	must(t, w.cluster.CreateNamespace(t.Context(), namespace))
	w.customResource(t)
	w.secret(t, "plain")
	w.under(t, cbc, identity)
	w.secret(t, "cbc")
	w.under(t, box, cbc, identity)
	w.secret(t, "box")
	w.under(t, kms, box, cbc, identity)
	w.secret(t, "kms1")
	w.secret(t, "kms2")
	w.widget(t, "one")
	must(t, w.cluster.CreateConfigMap(t.Context(), namespace, "one", map[string]string{"colour": "green"}))
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	history(t, w)
	live := []string{"--endpoints", w.cluster.EtcdURL()}
	args := func(command string, more ...string) []string { return slices.Concat([]string{command}, live, more) }
	kms := func(objects int) string {
		return fmt.Sprintf("kms:v2:%s %s %d (1)", kube.ProviderName, w.keyID, objects)
	}

	t.Log("the leftovers of every provider are told apart, custom resources included")
	var r report
	run(t, w.plugin, args("report", "-o", "json")...).want(t, 0).into(t, &r)
	if got, want := line(r.Resources, "secrets"), "total 5 plain 1 broken 0, aescbc:v1:key1  1 (0), "+kms(2)+", secretbox:v1:box1  1 (0)"; got != want {
		t.Errorf("secrets: %s, want %s", got, want)
	}
	if got, want := line(r.Resources, "widgets.example.com"), "total 1 plain 0 broken 0, "+kms(1); got != want {
		t.Errorf("widgets: %s, want %s", got, want)
	}
	if got := line(r.Resources, "configmaps"); !strings.Contains(got, "broken 0") || strings.Contains(got, "kms") {
		t.Errorf("configmaps: %s", got)
	}
	for _, r := range r.Resources { // resources as the API server names them: no leftovers of storage paths
		if r.Resource == "minions" || strings.Contains(r.Resource, "/") || r.Resource == "example.com" {
			t.Errorf("a resource is called %q", r.Resource)
		}
	}

	t.Log("requirements: not met, and what is wrong stands out")
	table := run(t, w.plugin, args("report", "--require-key", "current", "--encryption-config", w.cluster.EncryptionConfig())...).want(t, 1)
	for _, said := range []string{"PLAIN TEXT", "aescbc:v1:key1", "1 object of secrets: plain text", "where the configuration writes kms:v2:" + kube.ProviderName} {
		if !strings.Contains(table.out, said) {
			t.Errorf("the table does not say %q:\n%s", said, table.out)
		}
	}
	if !strings.Contains(table.errOut, "hint:") {
		t.Errorf("no hint: %s", table.errOut)
	}
	run(t, w.plugin, args("report", "--require-key", w.keyID, "--resources", "widgets.example.com")...).want(t, 0)
	run(t, w.plugin, args("report", "--require-key", w.keyID, "--resources", "*.*")...).want(t, 1)

	t.Log("verify opens what is the HSM's, and says what is not")
	var v verification
	run(t, w.plugin, args("verify", "-o", "json")...).want(t, 0).into(t, &v)
	if !v.OK || v.Verified != 3 || v.DEKs != 1 || v.Others != 2 {
		t.Errorf("verification = %+v", v)
	}

	t.Log("after everything was rewritten, the requirements are met")
	for _, name := range []string{"plain", "cbc", "box"} {
		path := "/api/v1/namespaces/" + namespace + "/secrets/" + name
		var object map[string]any
		must(t, w.cluster.Do(t.Context(), http.MethodGet, path, nil, &object))
		must(t, w.cluster.Do(t.Context(), http.MethodPut, path, object, nil))
	}
	run(t, w.plugin, args("report", "--require-key", "current", "--encryption-config", w.cluster.EncryptionConfig())...).want(t, 0)

	snapshots(t, w, &r)
	hostile(t, w, args)
}

// snapshots reads the same from files, opens them with a copy of the token elsewhere, and recovers an object.
func snapshots(t *testing.T, w *rig, before *report) {
	t.Log("a snapshot tells the same, and what its older revisions hold")
	path := w.snapshot(t, "backup.db")
	var r report
	run(t, w.plugin, "report", "--snapshot", path, "-o", "json").want(t, 0).into(t, &r)
	if got, want := line(r.Resources, "secrets"), fmt.Sprintf("total 5 plain 0 broken 0, kms:v2:%s %s 5 (1)", kube.ProviderName, w.keyID); got != want {
		t.Errorf("secrets: %s, want %s", got, want)
	}
	if got, want := line(r.History, "secrets"), "total 3 plain 1 broken 0, aescbc:v1:key1  1 (0), secretbox:v1:box1  1 (0)"; got != want {
		t.Errorf("history of secrets: %s, want %s", got, want)
	}
	if len(before.History) != 0 || r.Revision <= before.Revision {
		t.Errorf("live: history %v, revision %d; snapshot: revision %d", before.History, before.Revision, r.Revision)
	}
	run(t, w.plugin, "report", "--snapshot", path, "--require-key", w.keyID).want(t, 0)

	t.Log("etcd's own file, restored by etcdutl")
	if _, err := os.Stat(w.bin.Kube.Path("etcdutl")); err == nil {
		restored := filepath.Join(w.dir, "restored")
		w.tool(t, "etcdutl", "snapshot", "restore", path, "--data-dir", restored)
		var again report
		run(t, w.plugin, "report", "--snapshot", filepath.Join(restored, "member/snap/db"), "-o", "json").want(t, 0).into(t, &again)
		if got, want := line(again.Resources, "secrets"), line(r.Resources, "secrets"); got != want {
			t.Errorf("restored: %s, want %s", got, want)
		}
	}
	running := filepath.Join(w.dir, "kube/etcd/member/snap/db")
	if o := run(t, w.plugin, "report", "--snapshot", running).want(t, 2); !strings.Contains(o.errOut, "a running etcd has it open") {
		t.Errorf("a running etcd's file: %s", o.errOut)
	}

	drill(t, w, path)

	t.Log("one object, from the file, without an API server")
	get(t, w, path)

	t.Log("a damaged snapshot is exit 2")
	data, err := os.ReadFile(path)
	must(t, err)
	for name, bad := range map[string][]byte{"cut": data[:len(data)-4096], "short": data[:100000], "flipped": flip(data)} {
		damaged := filepath.Join(w.dir, name)
		must(t, os.WriteFile(damaged, bad, 0o600))
		for _, command := range []string{"report", "verify"} {
			if o := run(t, w.plugin, command, "--snapshot", damaged).want(t, 2); !strings.Contains(o.errOut, "damaged snapshot") {
				t.Errorf("%s of a snapshot that was %s: %s", command, name, o.errOut)
			}
		}
	}
}

// drill opens a snapshot with a copy of the token, and fails to with another.
func drill(t *testing.T, w *rig, path string) {
	t.Helper()
	t.Log("the restore drill: another machine with a copy of the token, and one with another key")
	token, err := w.token.CopyTo(filepath.Join(w.dir, "hsm-copy"))
	must(t, err)
	elsewhere := w.pluginOn(t, "elsewhere", token)
	var v verification
	run(t, elsewhere, "verify", "--snapshot", path, "-o", "json").want(t, 0).into(t, &v)
	if !v.OK || v.Verified != 6 || v.DEKs != 1 {
		t.Errorf("verification = %+v", v)
	}
	run(t, elsewhere, "verify", "--snapshot", path, "--sample", "1", "--resources", "secrets").want(t, 0)
	other, err := softhsm.New(t.Context(), filepath.Join(w.dir, "hsm-other"), "e2e", "")
	must(t, err)
	stranger := w.pluginOn(t, "stranger", other)
	_, err = stranger.CreateKey(t.Context())
	must(t, err)
	run(t, stranger, "verify", "--snapshot", path, "-o", "json").want(t, 1).into(t, &v)
	if v.OK || v.Verified != 0 || v.Failed != 6 || len(v.Failures) != 6 || !strings.Contains(v.Failures[0].Reason, w.keyID) {
		t.Errorf("verification with another key = %+v", v)
	}
}

func flip(data []byte) []byte {
	out := slices.Clone(data)
	out[len(out)/2] ^= 1
	return out
}

func get(t *testing.T, w *rig, snapshot string) {
	t.Helper()
	key := "/registry/secrets/" + namespace + "/kms1"
	from := []string{"--snapshot", snapshot}
	run(t, w.plugin, slices.Concat([]string{"get", key}, from)...).want(t, 1)
	text := run(t, w.plugin, slices.Concat([]string{"get", key, "--break-glass", "INC-42"}, from)...).want(t, 0).out
	var object map[string]any
	must(t, yaml.Unmarshal([]byte(text), &object))

	// The API server takes back what was recovered.
	must(t, w.cluster.Do(t.Context(), http.MethodDelete, "/api/v1/namespaces/"+namespace+"/secrets/kms1", nil, nil))
	must(t, w.cluster.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/"+namespace+"/secrets", object, nil))
	again, err := w.cluster.GetSecret(t.Context(), namespace, "kms1")
	must(t, err)
	if string(again.Data["password"]) != "canary-kms1" {
		t.Errorf("the recovered secret holds %q", again.Data["password"])
	}
	widget := run(t, w.plugin, slices.Concat([]string{"get", "/registry/example.com/widgets/" + namespace + "/one", "--break-glass", "INC-43", "-o", "json"}, from)...).want(t, 0)
	if !strings.Contains(widget.out, `"spec":"canary-one"`) {
		t.Errorf("the widget: %s", widget.out)
	}
	to := filepath.Join(w.dir, "recovered.yaml")
	run(t, w.plugin, slices.Concat([]string{"get", key, "--break-glass", "INC-44", "--to", to}, from)...).want(t, 0)
	if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	run(t, w.plugin, slices.Concat([]string{"get", key, "--break-glass", "INC-45", "--to", to}, from)...).want(t, 2)
	run(t, w.plugin, slices.Concat([]string{"get", "/registry/secrets/none/none", "--break-glass", "INC-46"}, from)...).want(t, 1)

	trail := strings.TrimSuffix(w.plugin.AuditLog(), ".log") + "-etcd-get.log"
	log, err := os.ReadFile(trail)
	must(t, err)
	for _, said := range []string{"INC-42", "INC-43", "INC-46", key, w.keyID, `"code":"OK"`, `"code":"NotFound"`} {
		if !strings.Contains(string(log), said) {
			t.Errorf("the audit trail does not say %s:\n%s", said, log)
		}
	}
	if strings.Contains(string(log), "canary") {
		t.Error("the audit trail holds plaintext")
	}
}
