package encconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/encconfig"
)

const sample = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [secrets, widgets.example.com]
    providers:
      - kms: {apiVersion: v2, name: hsm-kms, endpoint: "unix:///s", timeout: 3s}
      - aescbc: {keys: [{name: key1, secret: c2VjcmV0c2VjcmV0Cg==}, {name: key2, secret: c2VjcmV0}]}
      - identity: {}
  - resources: ["*.apps"]
    providers:
      - secretbox: {keys: [{name: box, secret: c2VjcmV0}]}
  - resources: ["*.*"]
    providers:
      - identity: {}
      - kms: {apiVersion: v2, name: hsm-kms, endpoint: "unix:///s"}
`

const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: "

func resource(name string, plain int64, keys ...evidence.Key) evidence.Resource {
	r := evidence.Resource{Resource: name, Plaintext: plain, Total: plain, Keys: keys}
	for _, key := range keys {
		r.Total += key.Objects
	}
	return r
}

func TestCompare(t *testing.T) {
	t.Parallel()
	c, err := encconfig.Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	kms := evidence.Key{Provider: "kms:v2:hsm-kms", KeyID: "k", Objects: 2}
	other := evidence.Key{Provider: "kms:v2:other", KeyID: "k", Objects: 3}
	cbc := evidence.Key{Provider: "aescbc:v1:key2", Objects: 4}
	box := evidence.Key{Provider: "secretbox:v1:box", Objects: 5}
	report := &evidence.Report{Resources: []evidence.Resource{
		resource("configmaps", 7), resource("deployments.apps", 1, box), resource("events", 0, kms),
		resource("secrets", 9, kms, cbc, other), resource("widgets.example.com", 0, kms),
		{Resource: "pods", Total: 1, Undecodable: 1},
	}}
	got := c.Compare(report, nil)
	want := []evidence.Finding{
		{Resource: "deployments.apps", Problem: "plain text, which the configuration cannot read: it writes secretbox:v1:box", Objects: 1},
		{Resource: "events", Problem: "kms:v2:hsm-kms, where the configuration writes plain text", Objects: 2},
		{Resource: "secrets", Problem: "aescbc:v1:key2, where the configuration writes kms:v2:hsm-kms", Objects: 4},
		{Resource: "secrets", Problem: "kms:v2:other, which the configuration cannot read: it writes kms:v2:hsm-kms", Objects: 3},
		{Resource: "secrets", Problem: "plain text, where the configuration writes kms:v2:hsm-kms", Objects: 9},
		{Resource: "pods", Problem: "undecodable", Objects: 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, report.Findings); diff != "" {
		t.Error(diff)
	}
}

// Where kube-apiserver refuses to start, nothing is compared: of two entries for a resource the earlier would win.
func TestMasked(t *testing.T) {
	t.Parallel()
	entry := func(names string) string { return "  - {resources: [" + names + "], providers: [{identity: {}}]}\n" }
	for names, says := range map[string]string{
		`"*.*", secrets`:    "in the same list",
		`secrets, secrets`:  "in the same list",
		`"*."|secrets`:      `"secrets" is covered by "*." of an earlier entry`,
		`"*.*"|"*.apps"`:    `"*.apps" is covered by "*.*" of an earlier entry`,
		`"*.apps"|"*.apps"`: "covered",
	} {
		first, second, _ := strings.Cut(names, "|")
		text := head + "\n" + entry(first)
		if second != "" {
			text += entry(second)
		}
		if _, err := encconfig.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", names, err)
		}
	}
	if _, err := encconfig.Parse([]byte(head + "\n" + entry("secrets") + entry("secrets, configmaps") + entry(`"*."`) + entry(`"*.*"`))); err != nil {
		t.Error(err)
	}
}

// A resource that no entry names is plain text.
func TestUnnamed(t *testing.T) {
	t.Parallel()
	c, err := encconfig.Parse([]byte(head + "[{resources: [secrets], providers: [{identity: {}}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	report := &evidence.Report{Resources: []evidence.Resource{resource("pods", 1), resource("leases", 0, evidence.Key{Provider: "kms:v2:x", Objects: 1})}}
	if got := c.Compare(report, nil); len(got) != 1 || got[0].Resource != "leases" {
		t.Errorf("findings = %+v", got)
	}
}

// Errors name the line, and never a value of the file: those are keys.
func TestMistakes(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty": "", "no YAML": "\x00", "other kind": strings.Replace(sample, "EncryptionConfiguration", "Pod", 1), "other version": strings.Replace(sample, "/v1\n", "/v2\n", 1), "unknown field": strings.Replace(sample, "timeout", "canary", 1),
		"two providers": strings.Replace(sample, "- identity: {}", "- {identity: {}, kms: {name: canary}}", 1),
		"no keys":       strings.Replace(sample, "[{name: box, secret: c2VjcmV0}]", "[]", 1),
		"no providers":  head + "[{resources: [secrets]}]", "no entries": head + "[]",
		"keys a text": strings.Replace(sample, "{keys: [{name: box, secret: c2VjcmV0}]}", "c2VjcmV0", 1),
	} {
		if _, err := encconfig.Parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "c2Vj") {
			t.Errorf("%s: the error quotes a key: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(path, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := encconfig.Load(path); err == nil {
		t.Error("a huge file is read")
	}
}

// TestLost: what an API server reads with one list and not with the next.
func TestLost(t *testing.T) {
	t.Parallel()
	parse := func(entries string) *encconfig.Config {
		t.Helper()
		c, err := encconfig.Parse([]byte(head + "\n" + entries))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	const (
		ours = `{kms: {apiVersion: v2, name: hsm-kms, endpoint: "unix:///s"}}`
		v1   = `{kms: {name: hsm-kms, endpoint: "unix:///s"}}`
		cbc  = `{aescbc: {keys: [{name: k1, secret: YQ==}, {name: k2, secret: Yg==}]}}`
	)
	next := parse("- {resources: [secrets], providers: [" + ours + ", " + cbc + ", {identity: {}}]}")
	for _, c := range []struct{ old, want string }{
		{"- {resources: [secrets], providers: [{identity: {}}, " + ours + "]}", ""},
		{"- {resources: [secrets], providers: [" + v1 + "]}", "secrets: the provider or key kms:v1:hsm-kms"},
		{"- {resources: [secrets, configmaps], providers: [" + ours + "]}", "configmaps: the provider or key kms:v2:hsm-kms"},
		{"- {resources: ['*.*'], providers: [" + ours + "]}", "*.*: the provider or key kms:v2:hsm-kms"},
		// The same names, and nobody knows whether the same keys.
		{"- {resources: [secrets], providers: [" + cbc + "]}", "secrets: the provider or key aescbc:v1:k1; secrets: the provider or key aescbc:v1:k2"},
		{"- {resources: [events], providers: [{identity: {}}]}", "events: identity"},
	} {
		if got := strings.Join(parse(c.old).Lost(next), "; "); got != c.want {
			t.Errorf("%s\nloses %q, want %q", c.old, got, c.want)
		}
	}
}

// TestUnreadable: what etcd holds and no provider of the list reads; what is merely not under the first provider is not in it.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	c, err := encconfig.Parse([]byte(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers: [{kms: {apiVersion: v2, name: hsm-kms, endpoint: "unix:///s"}}, {aescbc: {keys: [{name: k1, secret: YQ==}]}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	got := c.Unreadable(&evidence.Report{Resources: []evidence.Resource{
		{Resource: "secrets", Plaintext: 2, Keys: []evidence.Key{{Provider: "kms:v2:hsm-kms", Objects: 5}, {Provider: "aescbc:v1:k1", Objects: 6}, {Provider: "aescbc:v1:k2", Objects: 7}}},
		{Resource: "configmaps", Plaintext: 3, Keys: []evidence.Key{{Provider: "kms:v2:hsm-kms", Objects: 1}}},
	}})
	want := []string{"7 objects of secrets under aescbc:v1:k2", "2 objects of secrets in plain text", "1 objects of configmaps under kms:v2:hsm-kms"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
