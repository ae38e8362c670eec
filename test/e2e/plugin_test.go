//go:build e2e

package e2e

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// After a SIGKILL or a power loss the socket file is still there; the plugin must start all the same.
func TestSocketLeftOverBySIGKILL(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	w.startPlugin(t)
	for range 2 {
		w.plugin.Kill()
		if info, err := os.Lstat(w.plugin.Socket()); err != nil || info.Mode().Type() != os.ModeSocket {
			t.Fatalf("the socket after SIGKILL: %v, %v; want it left over", info, err)
		}
		w.startPlugin(t)
	}
}

// A second plugin, started by mistake or by an overlapping rollout, must go away and leave the first alone.
func TestSecondPluginOnLiveSocket(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	w.startPlugin(t)
	before, err := os.Lstat(w.plugin.Socket())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = w.plugin.Run(ctx, "serve")
	exit, ok := errors.AsType[*plugin.ExitError](err)
	if !ok || exit.Code != 2 || !strings.Contains(exit.Stderr, "hint:") || !strings.Contains(exit.Stderr, w.plugin.Socket()) {
		t.Errorf("second plugin: %v; want exit code 2, the socket's path and a hint", err)
	}
	after, err := os.Lstat(w.plugin.Socket())
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the socket is not the one it was: %v", err)
	}
	if status, err := w.plugin.Status(ctx); err != nil || status.Healthz != "ok" {
		t.Errorf("status of the first = %+v, %v", status, err)
	}
}

// kube-apiserver caches a good Status for 20 s, so red and green both take their time.
func TestPluginDownTurnsReadyzRed(t *testing.T) {
	t.Parallel()
	w := running(t)
	w.writeSecret(t, "one")
	w.plugin.Kill()
	began := time.Now()
	w.waitHealth(t, "/readyz/kms-providers", http.StatusInternalServerError)
	t.Logf("red after %s", time.Since(began).Round(time.Second))
	for path, want := range map[string]int{
		"/readyz":                       http.StatusInternalServerError,
		"/readyz?exclude=kms-providers": http.StatusOK, // what a load balancer should ask
		"/livez":                        http.StatusOK, // or kubelet would restart an API server that works
	} {
		w.waitHealth(t, path, want)
	}
	w.readSecret(t, "one") // from the API server's cache

	w.startPlugin(t)
	began = time.Now()
	w.waitHealth(t, "/readyz", http.StatusOK)
	t.Logf("green after %s", time.Since(began).Round(time.Second))
	w.writeSecret(t, "two")
	w.checkEncrypted(t, "two")
}

func (w *rig) waitHealth(t *testing.T, path string, want int) {
	t.Helper()
	eventually(t, path, func() (bool, string) {
		code, text, err := w.cluster.Health(t.Context(), path)
		if err != nil {
			return false, err.Error()
		}
		return code == want, text
	})
}
