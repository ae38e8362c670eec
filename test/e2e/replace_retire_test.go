//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// mover1 is the one node of TestReplaceHSMToTheEnd, in a shell of which the runbook's commands are run.
type mover1 struct {
	*rig
	book   *runbook
	folder string // of the shell
	argv   string // PATH begins with it
}

const (
	readNew  = "1. Every node reads the new ring"
	writeNew = "2. Node by node, write under the new ring"
	moveData = "3. Move the data, and let the old keys go"
	lostOld  = "A token of the old ring is lost"
)

// The move with a real API server, by the commands of the runbook: the first Secrets are under the old ring, what is written
// after the swap under the new one, and both are in one LIST; etcd migrate rewrites the rest and is the evidence with which the
// last key of the old ring goes. An API server that starts afterwards reads everything.
func TestReplaceHSMToTheEnd(t *testing.T) {
	t.Parallel()
	w := newMover1(t)
	old, next := w.tokens(t)
	w.writeSecret(t, "before")

	w.reconfigure(t, "kube-secrets", old, "kube-next", next, false)
	w.do(t, readNew, "Made kube-next/")
	w.do(t, readNew, "belongs to the cluster")
	w.restartPlugin(t, "kube-next")
	w.do(t, readNew, "read ring  kube-next (1 of 1 keys proven)")
	w.reconfigure(t, "kube-next", next, "kube-secrets", old, false)
	w.restartPlugin(t, "kube-secrets")
	w.do(t, writeNew, "key_id     kube-next/")
	w.do(t, lostOld, "the ring is only read")
	names := w.writeUntilUnder(t, "kube-next/")
	w.readSecret(t, "before")

	w.do(t, moveData) // migrate
	w.do(t, moveData, "0 could not be opened")
	w.saveSnapshot(t)
	dryRun, retire := w.book.next(t, moveData), w.book.next(t, moveData)
	if out, err := w.shell(t, dryRun); err == nil || !strings.Contains(out, "does not say that the ring kube-secrets is retiring") {
		t.Errorf("keys retire of a ring that is not retiring: %v: %s", err, out)
	}
	w.reconfigure(t, "kube-next", next, "kube-secrets", old, true)
	w.restartPlugin(t, "kube-secrets")
	for _, c := range []struct{ block, want string }{{dryRun, "Nothing was destroyed: a dry run."}, {retire, "Destroyed " + w.keyID}} {
		if out, err := w.shell(t, c.block); err != nil || !strings.Contains(out, c.want) {
			t.Fatalf("%s: %v: %s", c.block, err, out)
		}
	}
	w.restartPlugin(t, "kube-secrets") // empty, and retiring
	w.restartAPIServer(t)
	for _, name := range append(names, "before") {
		w.readSecret(t, name)
	}
	for heading, left := range w.book.blocks {
		for _, block := range left {
			t.Errorf("docs/replace-hsm.md: not run, under %q: %s", heading, block)
		}
	}
}

func newMover1(t *testing.T) *mover1 {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	w := &mover1{rig: running(t), book: readPage(t, "../../docs/replace-hsm.md")}
	w.folder, w.argv = filepath.Join(w.dir, "shell"), filepath.Join(w.dir, "bin")
	kubeconfig := filepath.Join(w.dir, "kubeconfig")
	// What stands elsewhere here than on a node, and what would take a day.
	script := fmt.Sprintf(`#!/bin/bash
args=("$@" --config %q)
case "$1 $2" in
"etcd migrate") args+=(--endpoints %s --kubeconfig %q --server %s) ;;
"etcd verify") args+=(--endpoints %s) ;;
"keys retire") args+=(--endpoints %s --settle 0s --sole-cluster --yes) ;;
esac
exec %q "${args[@]}"
`, w.plugin.Config(), w.cluster.EtcdURL(), kubeconfig, w.cluster.URL(), w.cluster.EtcdURL(), w.cluster.EtcdURL(), bin.HSMKMS)
	if err := errors.Join(os.Mkdir(w.folder, 0o700), os.Mkdir(w.argv, 0o700), os.WriteFile(filepath.Join(w.argv, "hsm-kms"), []byte(script), 0o700), //nolint:gosec // a script
		w.cluster.WriteKubeconfig(kubeconfig)); err != nil {
		t.Fatal(err)
	}
	return w
}

// tokens are the rig's, and another one in its store.
func (w *mover1) tokens(t *testing.T) (old, next *softhsm.Token) {
	t.Helper()
	module, err := softhsm.Module()
	if err != nil {
		t.Fatal(err)
	}
	old = &softhsm.Token{Dir: filepath.Join(w.dir, "hsm"), Module: module, Label: "e2e", PINFile: filepath.Join(w.dir, "hsm", "e2e.pin")}
	if next, err = old.Another(t.Context(), "next", ""); err != nil {
		t.Fatal(err)
	}
	return old, next
}

// do runs the next block of a section, which must succeed and print the wanted texts.
func (w *mover1) do(t *testing.T, heading string, wants ...string) {
	t.Helper()
	block := w.book.next(t, heading)
	out, err := w.shell(t, block)
	if err != nil {
		t.Fatalf("%s: %v: %s", block, err, out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%s does not print %q but: %s", block, want, out)
		}
	}
}

// shell runs a block with the names of this test's rings.
func (w *mover1) shell(t *testing.T, block string) (string, error) {
	t.Helper()
	block = strings.NewReplacer("kube-old", "kube-secrets", "kube-new", "kube-next", "/etc/kubernetes/admin.conf", filepath.Join(w.dir, "kubeconfig")).Replace(block)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", block)
	cmd.Dir = w.folder
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(w.dir, "hsm", "softhsm2.conf"), "PATH="+w.argv+":"+os.Getenv("PATH"), "OLD="+w.keyID)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// writeUntilUnder writes Secrets until one is under a key of the ring, and gives their names. Asking for an API server's health
// makes it ask its plugin, at most every 20 s; by itself it asks once a minute.
func (w *mover1) writeUntilUnder(t *testing.T, ring string) (names []string) {
	t.Helper()
	eventually(t, "the API server writes under the new ring", func() (bool, string) {
		_, _, _ = w.cluster.Health(t.Context(), "/readyz/kms-providers") // for what it causes only
		name := fmt.Sprintf("after-%d", len(names))
		w.writeSecret(t, name)
		names = append(names, name)
		raw, err := w.cluster.EtcdGet(t.Context(), "/registry/secrets/"+namespace+"/"+name)
		return err == nil && strings.Contains(string(raw), ring), fmt.Sprint(name, err)
	})
	return names
}

// saveSnapshot saves a snapshot that has no past.
func (w *mover1) saveSnapshot(t *testing.T) {
	t.Helper()
	client, err := w.cluster.Etcd()
	if err != nil {
		t.Fatal(err)
	}
	now, err := client.Get(t.Context(), "compact_rev_key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), now.Header.GetRevision(), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	saved, err := client.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	file, err := os.Create(filepath.Join(w.folder, "backup.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(file, saved)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
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
