//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
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

const namespace = "e2e"

// rig is one node: token, key, plugin and cluster.
type rig struct {
	dir     string
	bin     plugin.Programs
	token   *softhsm.Token
	keyID   string
	plugin  *plugin.Plugin
	members *kube.Members
	cluster *kube.Cluster
}

// newRig starts the plugin and etcd; the API server is the test's to start.
func newRig(t *testing.T) *rig {
	t.Helper()
	bin, err := plugin.FindPrograms()
	must(t, err)
	dir, err := os.MkdirTemp("", "hsm-kms-ev-") // t.TempDir is too long for a socket's path on some systems
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &rig{dir: dir, bin: bin}
	w.token, err = softhsm.New(t.Context(), filepath.Join(dir, "hsm"), "e2e", "")
	must(t, err)
	w.plugin = w.pluginOn(t, "plugin", w.token)
	key, err := w.plugin.CreateKey(t.Context())
	must(t, err)
	w.keyID = key.KeyID
	w.members, err = kube.NewMembers(bin.Kube, filepath.Join(dir, "kube"), 1)
	must(t, err)
	w.cluster, err = kube.New(kube.Options{
		Bin: bin.Kube, Dir: filepath.Join(dir, "kube"), Socket: w.plugin.Socket(), Resources: []string{"secrets", kube.Widgets}, Etcd: w.members,
	})
	must(t, err)
	t.Cleanup(func() { w.stop(t) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = w.plugin.Start(ctx)
	must(t, err)
	must(t, w.cluster.StartEtcd(ctx))
	return w
}

func (w *rig) pluginOn(t *testing.T, name string, token *softhsm.Token) *plugin.Plugin {
	t.Helper()
	p, err := plugin.New(plugin.Options{Bin: w.bin.HSMKMS, Dir: filepath.Join(w.dir, name), Token: token, Extra: "refreshInterval: 1s\nprobeInterval: 1s"})
	must(t, err)
	return p
}

func (w *rig) stop(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("kube-apiserver:\n%s", w.cluster.Log(30))
	}
	if err := errors.Join(w.cluster.Stop(), w.members.Stop(), w.plugin.Stop()); err != nil {
		t.Error(err)
	}
}

// under restarts the API server with these providers, the first of which encrypts.
func (w *rig) under(t *testing.T, providers ...map[string]any) {
	t.Helper()
	config := map[string]any{
		"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
		"resources": []any{map[string]any{"resources": []string{"secrets", kube.Widgets}, "providers": providers}},
	}
	data, err := json.Marshal(config)
	must(t, err)
	must(t, os.WriteFile(w.cluster.EncryptionConfig(), data, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, w.cluster.RestartAPIServer(ctx))
}

// outcome is what a command printed, and its exit code.
type outcome struct {
	out, errOut string
	code        int
}

// run runs hsm-kms etcd.
func run(t *testing.T, p *plugin.Plugin, args ...string) outcome {
	t.Helper()
	out, err := p.Run(t.Context(), append([]string{"etcd"}, args...)...)
	o := outcome{out: string(out)}
	if exit, ok := errors.AsType[*plugin.ExitError](err); ok {
		o.code, o.errOut = exit.Code, exit.Stderr
	} else {
		must(t, err)
	}
	return o
}

// want fails the test unless the command ended with this code.
func (o outcome) want(t *testing.T, code int) outcome {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit code %d, want %d\n%s\n%s", o.code, code, o.out, o.errOut)
	}
	return o
}

func (o outcome) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(o.out), v); err != nil {
		t.Fatalf("%v in %s", err, o.out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *rig) secret(t *testing.T, name string) {
	t.Helper()
	must(t, w.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte("canary-" + name)}))
}

// customResource makes the CRD; widget waits until it is served.
func (w *rig) customResource(t *testing.T) {
	t.Helper()
	must(t, w.cluster.DefineWidgets(t.Context()))
}

func (w *rig) widget(t *testing.T, name string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		err := w.cluster.CreateWidget(t.Context(), namespace, name, "canary-"+name)
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// snapshot saves one as its user does, or, where there is no etcdctl, as etcdctl does.
func (w *rig) snapshot(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if _, err := os.Stat(w.bin.Kube.Path("etcdctl")); err == nil {
		w.tool(t, "etcdctl", "--endpoints", w.cluster.EtcdURL(), "snapshot", "save", path)
		return path
	}
	client, err := w.cluster.Etcd()
	must(t, err)
	stream, err := client.Snapshot(t.Context())
	must(t, err)
	defer stream.Close()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = file.ReadFrom(stream)
	must(t, errors.Join(err, file.Close()))
	return path
}

// tool runs a program beside kube-apiserver.
func (w *rig) tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), w.bin.Kube.Path(name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
