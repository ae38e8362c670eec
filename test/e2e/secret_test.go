//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
)

// The whole way once: what the API gives, what etcd holds, and that both survive restarts of plugin and API server.
func TestSecretThroughTheAPI(t *testing.T) {
	t.Parallel()
	w := running(t)
	w.writeSecret(t, "one")
	w.readSecret(t, "one")
	w.checkEncrypted(t, "one")

	t.Log("a ConfigMap is not to be encrypted, and is not")
	if err := w.cluster.CreateConfigMap(t.Context(), namespace, "one", map[string]string{"colour": "green"}); err != nil {
		t.Fatal(err)
	}
	if m, err := w.cluster.GetConfigMap(t.Context(), namespace, "one"); err != nil || m.Data["colour"] != "green" {
		t.Errorf("config map = %+v, %v", m, err)
	}
	raw, err := w.cluster.EtcdGet(t.Context(), "/registry/configmaps/"+namespace+"/one")
	if err != nil || !bytes.Contains(raw, []byte("green")) {
		t.Errorf("etcd holds of the config map: %q, %v; want plain text", raw, err)
	}

	t.Log("killed plugin, its socket left over, and an API server without a cache")
	w.plugin.Kill()
	w.startPlugin(t)
	w.restartAPIServer(t)
	w.readSecret(t, "one")
	w.writeSecret(t, "two")
	w.checkEncrypted(t, "two")
	w.readSecret(t, "two")
}

// On a booting node nobody promises an order: the API server waits for the plugin and needs no restart.
func TestAPIServerStartsBeforePlugin(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.cluster.StartEtcd(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.cluster.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API server asks for the plugin and is told that there is none", func() (bool, string) {
		code, text, err := w.cluster.Health(ctx, "/readyz/kms-providers")
		if err != nil {
			return false, err.Error()
		}
		return code == 500, text
	})
	w.startPlugin(t)
	if err := w.cluster.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if !w.cluster.APIServer().Running() {
		t.Fatal("the API server ended")
	}
	w.makeNamespace(t)
	w.writeSecret(t, "one")
	w.checkEncrypted(t, "one")
	w.readSecret(t, "one")
}

// A plugin that restarts (an upgrade) must not be seen by those who use the API: nothing fails meanwhile.
func TestPluginRestartsWhileAPIServerServes(t *testing.T) {
	t.Parallel()
	w := running(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	type use struct {
		requests int
		err      error
	}
	used := make(chan use, 1)
	go func() {
		n, err := w.use(ctx)
		used <- use{n, err}
	}()
	for i := range 3 {
		if err := w.plugin.Stop(); err != nil {
			t.Error(err)
		}
		if code := w.plugin.Process().ExitCode(); code != 0 {
			t.Errorf("exit code after SIGTERM = %d, want 0", code)
		}
		if _, err := os.Lstat(w.plugin.Socket()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket after SIGTERM: %v, want it removed", err)
		}
		name := fmt.Sprintf("during-%d", i)
		w.writeSecret(t, name)
		w.readSecret(t, name)
		w.startPlugin(t)
	}
	stop()
	if u := <-used; u.err != nil || u.requests == 0 {
		t.Errorf("after %d requests while the plugin restarted: %v", u.requests, u.err)
	}
	w.restartAPIServer(t)
	for _, name := range []string{"during-0", "during-1", "during-2", "load-0"} {
		w.checkEncrypted(t, name)
		w.readSecret(t, name)
	}
}

// use writes and reads secrets until the context ends or a request fails; it gives how many it wrote.
func (w *rig) use(ctx context.Context) (int, error) {
	for i := 0; ; i++ {
		name := fmt.Sprintf("load-%d", i)
		err := w.cluster.CreateSecret(ctx, namespace, name, map[string][]byte{"password": []byte(canary(name))})
		if err == nil {
			_, err = w.cluster.GetSecret(ctx, namespace, name)
		}
		if ctx.Err() != nil {
			return i, nil //nolint:nilerr // told to stop
		}
		if err != nil {
			return i, err
		}
	}
}
