//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// patience is how long anything may take that the tests wait for.
const patience = time.Minute

// namespace is made in every rig.
const namespace = "e2e"

// rig is one node: token, key, plugin and cluster. Nothing of it runs yet when newRig returns.
type rig struct {
	dir     string
	keyID   string
	plugin  *plugin.Plugin
	cluster *kube.Cluster
}

// newRig makes a rig of the test's own, with a key; everything in it ends with the test.
func newRig(t *testing.T) *rig {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hsm-kms-e2e-") // t.TempDir is too long for a socket's path on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	token, err := softhsm.New(t.Context(), filepath.Join(dir, "hsm"), "e2e", "")
	if err != nil {
		t.Fatal(err)
	}
	w := &rig{dir: dir}
	w.plugin, err = plugin.New(plugin.Options{Bin: bin.HSMKMS, Dir: filepath.Join(dir, "plugin"), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	key, err := w.plugin.CreateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.keyID = key.KeyID
	w.cluster, err = kube.New(kube.Options{Bin: bin.Kube, Dir: filepath.Join(dir, "kube"), Socket: w.plugin.Socket()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.stop(t) })
	return w
}

// stop ends everything, and shows the logs of a test that failed.
func (w *rig) stop(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("kube-apiserver:\n%s", w.cluster.Log(30))
		if p := w.plugin.Process(); p != nil {
			t.Logf("hsm-kms:\n%s", p.Tail(50))
		}
	}
	if err := w.cluster.Stop(); err != nil {
		t.Error(err)
	}
	if err := w.plugin.Stop(); err != nil {
		t.Error(err)
	}
}

// running is a rig in which plugin, etcd and API server are up.
func running(t *testing.T) *rig {
	t.Helper()
	w := newRig(t)
	w.startPlugin(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, step := range []func(context.Context) error{w.cluster.StartEtcd, w.cluster.StartAPIServer, w.cluster.WaitReady} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	w.makeNamespace(t)
	return w
}

// startPlugin starts the plugin, waits until it is healthy and checks that it works under the rig's key.
func (w *rig) startPlugin(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, err := w.plugin.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.KeyID != w.keyID || status.Version != "v2" {
		t.Fatalf("status = %+v, want key_id %s and version v2", status, w.keyID)
	}
}

func (w *rig) makeNamespace(t *testing.T) {
	t.Helper()
	if err := w.cluster.CreateNamespace(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
}

// restartAPIServer empties the API server's cache of DEKs: what it reads next, the HSM must open.
func (w *rig) restartAPIServer(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.cluster.RestartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
}

// canary is the value that writeSecret stores under a name; it must never be readable in etcd.
func canary(name string) string { return "canary-" + name }

func (w *rig) writeSecret(t *testing.T, name string) {
	t.Helper()
	if err := w.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte(canary(name))}); err != nil {
		t.Fatal(err)
	}
}

func (w *rig) readSecret(t *testing.T, name string) {
	t.Helper()
	secret, err := w.cluster.GetSecret(t.Context(), namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(secret.Data["password"]); got != canary(name) {
		t.Errorf("secret %s holds %q, want %q", name, got, canary(name))
	}
}

// checkEncrypted checks what etcd holds of a secret.
func (w *rig) checkEncrypted(t *testing.T, name string) {
	t.Helper()
	raw, err := w.cluster.EtcdGet(t.Context(), "/registry/secrets/"+namespace+"/"+name)
	if err != nil {
		t.Fatal(err)
	}
	if prefix := "k8s:enc:kms:v2:" + kube.ProviderName + ":"; !strings.HasPrefix(string(raw), prefix) {
		t.Errorf("etcd holds %.60q, want it to start with %s", raw, prefix)
	}
	if bytes.Contains(raw, []byte(canary(name))) {
		t.Errorf("the secret %s is readable in etcd", name)
	}
	if !bytes.Contains(raw, []byte(w.keyID)) {
		t.Errorf("what etcd holds of %s does not name key_id %s", name, w.keyID)
	}
}

// eventually polls until ok says so; what tells the last thing seen.
func eventually(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for {
		done, seen := ok()
		if done {
			return
		}
		select {
		case <-timeout:
			t.Fatalf("%s: not within %s; last seen: %s", what, patience, seen)
		case <-tick.C:
		}
	}
}
