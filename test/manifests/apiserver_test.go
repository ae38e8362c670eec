//go:build e2e

package manifests

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// patience is how long anything may take that the test waits for.
const patience = 2 * time.Minute

// node is a plugin that runs, and an API server whose EncryptionConfiguration is what the program printed.
type node struct {
	plugin  *plugin.Plugin
	cluster *kube.Cluster
	dir     string
}

func newNode(t *testing.T) *node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	kubes, err := kubebin.Find(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "manifests-") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin, err := plugin.FindProgram()
	if err != nil {
		t.Fatal(err)
	}
	token, err := softhsm.New(ctx, filepath.Join(dir, "hsm"), "e2e", "")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir}
	if n.plugin, err = plugin.New(plugin.Options{Bin: bin, Dir: filepath.Join(dir, "plugin"), Token: token}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.plugin.CreateKey(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := n.plugin.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.plugin.Stop(); err != nil {
			t.Error(err)
		}
	})
	n.cluster, err = kube.New(kube.Options{
		Bin: kubes, Dir: filepath.Join(dir, "kube"), Socket: n.plugin.Socket(),
		// The flag counts as given last. Without a controller there is no service account for the pod.
		Args: []string{"--encryption-provider-config=" + n.encryptionConfig(), "--encryption-provider-config-automatic-reload=true",
			"--disable-admission-plugins=ServiceAccount"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) encryptionConfig() string { return filepath.Join(n.dir, "encryption.yaml") }

// print is what the command prints, after a replacement for what an operator fills in by hand.
func (n *node) print(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := n.plugin.Run(t.Context(), append([]string{"manifests"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	return []byte(strings.ReplaceAll(string(out), "<copy it from your present EncryptionConfiguration>", key))
}

func (n *node) install(t *testing.T, config []byte) {
	t.Helper()
	if err := os.WriteFile(n.encryptionConfig(), config, 0o600); err != nil {
		t.Fatal(err)
	}
}

// raw is what etcd holds of a Secret that is written now.
func (n *node) raw(t *testing.T, name string) string {
	t.Helper()
	if err := n.cluster.CreateSecret(t.Context(), "default", name, map[string][]byte{"k": []byte("canary")}); err != nil {
		t.Fatal(err)
	}
	raw, err := n.cluster.EtcdGet(t.Context(), "/registry/secrets/default/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestEncryptionConfigs walks through the steps that the documents describe, each loaded by a real kube-apiserver: what
// is written first must be readable until the end.
func TestEncryptionConfigs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kube-apiserver:\n%s", n.cluster.Log(30))
		}
		if err := n.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := n.cluster.StartEtcd(ctx); err != nil {
		t.Fatal(err)
	}
	const ours = "k8s:enc:kms:v2:hsm-kms:"
	var written []string
	for _, step := range []struct {
		name, prefix string // what a Secret begins with in etcd
		args         []string
	}{
		{"plain-1", "k8s\x00", []string{"--plaintext"}},
		{"plain-2", ours, []string{"--plaintext", "--step", "2"}},
		{"cbc-1", "k8s:enc:aescbc:v1:key1:", []string{"--from", "aescbc"}},
		{"cbc-2", ours, []string{"--from", "aescbc", "--step", "2"}},
		{"new", ours, []string{"--resources", "secrets,configmaps,widgets.example.com"}},
	} {
		n.install(t, n.print(t, append([]string{"encryption-config"}, step.args...)...))
		if err := n.cluster.RestartAPIServer(ctx); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if code, text, err := n.cluster.Health(ctx, "/readyz/kms-providers"); err != nil || code != http.StatusOK {
			t.Errorf("%s: kms-providers: %d, %s, %v", step.name, code, text, err)
		}
		if raw := n.raw(t, step.name); !strings.HasPrefix(raw, step.prefix) {
			t.Errorf("%s: etcd holds %.40q, want it to begin with %q", step.name, raw, step.prefix)
		}
		written = append(written, step.name)
		for _, name := range written {
			if _, err := n.cluster.GetSecret(ctx, "default", name); err != nil {
				t.Errorf("%s: reading what was written at %s: %v", step.name, name, err)
			}
		}
		n.doctor(t, step.name, strings.HasSuffix(step.name, "-1"))
		if strings.HasSuffix(step.name, "-2") {
			n.rewrite(t, written) // before the other provider is taken out, as the manifest says
		}
	}
	n.admitPod(t)
}

// rewrite puts Secrets back as they are, so that the first provider writes them.
func (n *node) rewrite(t *testing.T, names []string) {
	t.Helper()
	for _, name := range names {
		const path = "/api/v1/namespaces/default/secrets/"
		var secret map[string]any
		if err := n.cluster.Do(t.Context(), http.MethodGet, path+name, nil, &secret); err != nil {
			t.Fatal(err)
		}
		if err := n.cluster.Do(t.Context(), http.MethodPut, path+name, secret, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// doctor agrees: a first step is remarkable, everything else is not.
func (n *node) doctor(t *testing.T, step string, remarkable bool) {
	t.Helper()
	out, _ := n.plugin.Run(t.Context(), "doctor", "-o", "json", "--encryption-config", n.encryptionConfig())
	var found []struct{ Check, Result, Detail string }
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Result != "pass" && f.Check != "backup" && (f.Check != "encryption-order" || !remarkable) {
			t.Errorf("%s: doctor says %+v", step, f)
		}
	}
}

// admitPod lets the API server judge the static pod: every field known, every value valid.
func (n *node) admitPod(t *testing.T) {
	t.Helper()
	var pod map[string]any
	if err := yaml.Unmarshal(n.print(t, "static-pod", "--image", "example.com/hsm-kms:1"), &pod); err != nil {
		t.Fatal(err)
	}
	const path = "/api/v1/namespaces/kube-system/pods?dryRun=All&fieldValidation=Strict"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var admitted struct {
		Spec struct{ Priority int }
	}
	for { // the API server makes kube-system and the priority classes a moment after it is ready
		err := n.cluster.Do(ctx, http.MethodPost, path, pod, &admitted)
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "no PriorityClass") {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if admitted.Spec.Priority == 0 {
		t.Error("the pod has no priority")
	}
	pod["spec"].(map[string]any)["hostNetwrok"] = true
	if err := n.cluster.Do(ctx, http.MethodPost, path, pod, nil); err == nil {
		t.Error("a misspelt field was admitted: this test proves nothing")
	}
}
