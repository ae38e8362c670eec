//go:build e2e

package kube

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/kms/pkg/service"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// backwards is the least that the API server takes for a KMS: what it "encrypts" is the plaintext backwards.
type backwards struct{}

func (backwards) Status(context.Context) (*service.StatusResponse, error) {
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: "backwards"}, nil
}

func (backwards) Encrypt(_ context.Context, _ string, data []byte) (*service.EncryptResponse, error) {
	out := slices.Clone(data)
	slices.Reverse(out)
	return &service.EncryptResponse{Ciphertext: out, KeyID: "backwards"}, nil
}

func (backwards) Decrypt(_ context.Context, _ string, req *service.DecryptRequest) ([]byte, error) {
	out := slices.Clone(req.Ciphertext)
	slices.Reverse(out)
	return out, nil
}

// TestCluster runs the whole harness once against a plugin that is not ours: what fails here is the harness.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	bin, err := kubebin.Find(ctx, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	// t.TempDir is too long for a socket's path on some systems.
	dir, err := os.MkdirTemp("", "kube")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "kms.sock")
	plugin := service.NewGRPCService(socket, time.Second, backwards{})
	served := make(chan error, 1)
	go func() { served <- plugin.ListenAndServe() }()
	t.Cleanup(func() {
		plugin.Close()
		<-served
	})

	c, err := Start(ctx, Options{Bin: bin, Dir: filepath.Join(dir, "kube"), Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := c.CreateNamespace(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateSecret(ctx, "test", "one", map[string][]byte{"password": []byte("canary")}); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateConfigMap(ctx, "test", "one", map[string]string{"colour": "green"}); err != nil {
		t.Fatal(err)
	}
	var status *StatusError
	if err := c.CreateNamespace(ctx, "test"); !errors.As(err, &status) || status.Code != 409 {
		t.Errorf("second creation: %v, want 409", err)
	}
	if err := c.RestartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := c.GetSecret(ctx, "test", "one"); err != nil || string(s.Data["password"]) != "canary" {
		t.Errorf("secret after a restart: %v, %v", s, err)
	}
	if m, err := c.GetConfigMap(ctx, "test", "one"); err != nil || m.Data["colour"] != "green" {
		t.Errorf("config map after a restart: %v, %v", m, err)
	}
	raw, err := c.EtcdGet(ctx, "/registry/secrets/test/one")
	if err != nil || !strings.HasPrefix(string(raw), "k8s:enc:kms:v2:"+ProviderName+":") || bytes.Contains(raw, []byte("canary")) {
		t.Errorf("etcd holds %q, %v", raw, err)
	}
	if code, text, err := c.Health(ctx, "/readyz/kms-providers"); err != nil || code != 200 {
		t.Errorf("readyz/kms-providers: %d %s %v", code, text, err)
	}
}

// An API server that cannot start must say why, and at once.
func TestBrokenStartTellsWhy(t *testing.T) {
	t.Parallel()
	bin, err := kubebin.Find(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Bin: bin, Dir: t.TempDir(), Socket: "/nonexistent.sock", Args: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "unknown flag: --no-such-flag") {
		t.Errorf("err = %v, want one with the API server's own words", err)
	}
}
