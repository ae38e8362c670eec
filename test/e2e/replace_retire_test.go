//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// The end of the move with a real API server: the first Secrets are under the old ring, what is written after the swap under the
// new one, and both are in one LIST; etcd migrate rewrites the rest and is the evidence with which the last key of the old ring
// goes. An API server that starts afterwards reads everything.
func TestReplaceHSMToTheEnd(t *testing.T) {
	t.Parallel()
	w := running(t)
	token := &softhsm.Token{Dir: filepath.Join(w.dir, "hsm"), Label: "e2e", PINFile: filepath.Join(w.dir, "hsm", "e2e.pin")}
	var err error
	if token.Module, err = softhsm.Module(); err != nil {
		t.Fatal(err)
	}
	next, err := token.Another(t.Context(), "next", "")
	if err != nil {
		t.Fatal(err)
	}
	w.writeSecret(t, "before")
	kubeconfig := filepath.Join(w.dir, "kubeconfig")
	if err := w.cluster.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}

	w.reconfigure(t, "kube-secrets", token, "kube-next", next, false)
	if _, err := w.plugin.Run(t.Context(), "keys", "create", "--ring", "kube-next", "--kubeconfig", kubeconfig); err != nil {
		t.Fatal(err)
	}
	w.restartPlugin(t, "kube-next")
	w.reconfigure(t, "kube-next", next, "kube-secrets", token, false)
	w.restartPlugin(t, "kube-secrets")
	i := 0
	eventually(t, "the API server writes under the new ring", func() (bool, string) {
		_, _, _ = w.cluster.Health(t.Context(), "/readyz/kms-providers") // it makes the API server ask its plugin, every 20 s at most
		i++
		name := fmt.Sprintf("after-%d", i)
		w.writeSecret(t, name)
		raw, err := w.cluster.EtcdGet(t.Context(), "/registry/secrets/"+namespace+"/"+name)
		return err == nil && strings.Contains(string(raw), "kube-next/"), fmt.Sprint(name, err)
	})
	w.readSecret(t, "before")

	migrated := filepath.Join(w.dir, "migrate.json")
	etcd := []string{"--endpoints", w.cluster.EtcdURL()}
	out, err := w.plugin.Run(t.Context(), append([]string{"etcd", "migrate", "-o", "json", "--kubeconfig", kubeconfig, "--server", w.cluster.URL()}, etcd...)...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(migrated, out, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.plugin.Run(t.Context(), append([]string{"etcd", "verify"}, etcd...)...); err != nil {
		t.Error(err)
	}
	retire := append([]string{"keys", "retire", w.keyID, "--ring", "kube-secrets", "--evidence", migrated, "--settle", "0s", "--sole-cluster", "--yes"}, etcd...)
	_, err = w.plugin.Run(t.Context(), retire...)
	if exit, finding := errors.AsType[*plugin.ExitError](err); !finding || exit.Code != 1 || !strings.Contains(exit.Stderr, "is retiring") {
		t.Errorf("keys retire of a ring that is not retiring: %v", err)
	}
	w.reconfigure(t, "kube-next", next, "kube-secrets", token, true)
	w.restartPlugin(t, "kube-secrets")
	if out, err = w.plugin.Run(t.Context(), retire...); err != nil || !strings.Contains(string(out), "Destroyed "+w.keyID) {
		t.Fatalf("keys retire: %v: %s", err, out)
	}
	w.restartPlugin(t, "kube-secrets") // empty, and retiring
	w.restartAPIServer(t)
	for n := range i {
		w.readSecret(t, fmt.Sprintf("after-%d", n+1))
	}
	w.readSecret(t, "before")
}

// reconfigure writes a configuration in which one ring is written under and another is read.
func (w *rig) reconfigure(t *testing.T, ring string, token *softhsm.Token, read string, readToken *softhsm.Token, retiring bool) {
	t.Helper()
	text := fmt.Sprintf(`apiVersion: hsm-kms/v1
kind: PluginConfiguration
socket: {path: %q, allowedUIDs: [%d]}
keyRing: %s
tokens: [{name: %s, module: %q, label: %q, pinFile: %q}]
readRings: [{keyRing: %s, retiring: %t, tokens: [{name: %s, module: %q, label: %q, pinFile: %q}]}]
stateDir: %q
http: {address: ""}
audit: {path: %q}
%s
`, w.plugin.Socket(), os.Getuid(), ring, token.Label, token.Module, token.Label, token.PINFile,
		read, retiring, readToken.Label, readToken.Module, readToken.Label, readToken.PINFile,
		filepath.Join(filepath.Dir(w.plugin.Config()), "state"), w.plugin.AuditLog(), quick)
	if err := os.WriteFile(w.plugin.Config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// restartPlugin restarts the plugin and waits until it is ok and has proven the read ring.
func (w *rig) restartPlugin(t *testing.T, read string) {
	t.Helper()
	if err := w.plugin.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := w.plugin.Start(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the read ring is proven", func() (bool, string) {
		out, err := w.plugin.Run(t.Context(), "status", "--ring", read)
		return err == nil, fmt.Sprint(string(out), err)
	})
}
