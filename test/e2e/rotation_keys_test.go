//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// alone is a plugin with a token and no API server: enough where only keys matter.
type alone struct {
	*rig
	token *softhsm.Token
}

// newAlone makes a token without a key and a plugin that does not run yet.
func newAlone(t *testing.T, extra string) *alone {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	token, err := softhsm.New(t.Context(), filepath.Join(dir, "hsm"), "e2e", "")
	if err != nil {
		t.Fatal(err)
	}
	a := &alone{rig: &rig{dir: dir}, token: token}
	a.plugin, err = plugin.New(plugin.Options{Bin: bin.HSMKMS, Dir: filepath.Join(dir, "plugin"), Token: token, Extra: quick + extra})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.stopPlugin(t) })
	return a
}

func (a *alone) stopPlugin(t *testing.T) {
	t.Helper()
	if p := a.plugin.Process(); p != nil && t.Failed() {
		t.Logf("hsm-kms:\n%s", p.Tail(30))
	}
	if err := a.plugin.Stop(); err != nil {
		t.Error(err)
	}
}

// start starts the plugin and waits until it is healthy under keyID.
func (a *alone) start(t *testing.T, keyID string) {
	t.Helper()
	a.keyID = keyID
	a.startPlugin(t)
}

// waitStatus waits until Status names keyID with healthz.
func (a *alone) waitStatus(t *testing.T, keyID, healthz string) {
	t.Helper()
	eventually(t, "status "+healthz+" under "+keyID, func() (bool, string) {
		status, _ := a.plugin.Status(t.Context()) // exit 1 says what status says
		return status.KeyID == keyID && strings.HasPrefix(status.Healthz, healthz), status.KeyID + " " + status.Healthz + status.Error
	})
}

// list gives the ring by key_id; the order of the answer is checked elsewhere.
func (a *alone) list(t *testing.T) map[string]plugin.Key {
	t.Helper()
	keys, err := a.plugin.Keys(t.Context())
	if _, finding := errors.AsType[*plugin.ExitError](err); err != nil && !finding {
		t.Fatal(err)
	}
	all := map[string]plugin.Key{}
	for _, k := range keys {
		all[k.KeyID] = k
	}
	return all
}

func (a *alone) encrypt(t *testing.T, client kmsapi.KeyManagementServiceClient) *kmsapi.EncryptResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// As the API server does: Status first, and then Encrypt under the key_id that it named.
	if _, err := client.Status(ctx, &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	enc, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: make([]byte, dekSeed), Uid: "uid"})
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

// opens checks that all that was sealed is opened.
func (a *alone) opens(t *testing.T, client kmsapi.KeyManagementServiceClient, sealed ...*kmsapi.EncryptResponse) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, enc := range sealed {
		if _, err := client.Decrypt(ctx, decryptRequest(enc)); err != nil {
			t.Errorf("what was sealed under %s: %v", enc.GetKeyId(), err)
		}
	}
}

// keys list tells people and programs which version is what, since when, on which tokens, with what an auditor asks for.
func TestRotationKeysList(t *testing.T) {
	t.Parallel()
	a := newAlone(t, "")
	first, err := a.plugin.CreateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.plugin.RotateKey(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	third, err := a.plugin.RotateKey(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.plugin.Run(t.Context(), "keys", "list", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var entries []map[string]any
	if err := json.Unmarshal(out, &entries); err != nil || len(entries) != 3 {
		t.Fatalf("keys list -o json: %v: %s", err, out)
	}
	table, err := a.plugin.Run(t.Context(), "keys", "list")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(table), "\n")
	for i, want := range []struct {
		key   plugin.Key
		state string
	}{{first, "retained"}, {second, "current"}, {third, "pending"}} {
		got := entries[i]
		expected := map[string]any{
			"keyID": want.key.KeyID, "ring": "kube-secrets", "id": want.key.ID, "state": want.state,
			"activates":   want.key.Activates.UTC().Format("2006-01-02T15:04:05.000Z07:00"),
			"fingerprint": want.key.Fingerprint, "sensitive": true, "extractable": false, "neverExtractable": true, "local": true,
		}
		for field, value := range expected {
			if got[field] != value {
				t.Errorf("%s of entry %d is %v, want %v", field, i, got[field], value)
			}
		}
		if tokens, ok := got["tokens"].([]any); !ok || !slices.Equal(tokens, []any{"softhsm"}) {
			t.Errorf("tokens of entry %d are %v", i, got["tokens"])
		}
		line := lines[i+1]
		for _, part := range []string{want.state, want.key.Activates.UTC().Format(time.RFC3339), want.key.KeyID, "softhsm"} {
			if !strings.Contains(line, part) {
				t.Errorf("line %d of the table lacks %s: %s", i+1, part, line)
			}
		}
	}
}

// keys retire withdraws a pending version, on a running plugin too, and refuses everything else with exit 1 and a hint.
func TestRotationKeysRetire(t *testing.T) {
	t.Parallel()
	a := newAlone(t, "")
	retained, err := a.plugin.CreateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	current, err := a.plugin.RotateKey(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	a.start(t, current.KeyID)
	near, err := a.plugin.RotateKey(t.Context(), 4*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	far, err := a.plugin.RotateKey(t.Context(), time.Hour, "--another")
	if err != nil {
		t.Fatal(err)
	}
	for name, refused := range map[string]struct {
		keyID, because string
	}{
		"the current one":                      {current.KeyID, "is current"},
		"a retained one without evidence":      {retained.KeyID, "no evidence"},
		"one that is about to become current":  {near.KeyID, "may have sealed under it"},
		"one that is not in the ring":          {otherKeyID(far.KeyID), "not in the ring"},
		"the right one, without confirmation":  {far.KeyID, "confirmation"},
		"a pending one, misspelt by one digit": {otherKeyID(near.KeyID), "not in the ring"},
	} {
		args := []string{"keys", "retire", refused.keyID, "--no-etcd", "--yes"}
		if refused.because == "confirmation" {
			args = args[:4]
		}
		_, err := a.plugin.Run(t.Context(), args...)
		exit, ok := errors.AsType[*plugin.ExitError](err)
		if !ok || exit.Code != 1 || !strings.Contains(exit.Stderr, refused.because) || !strings.Contains(exit.Stderr, "hint:") {
			t.Errorf("%s: %v; want exit 1, %q and a hint", name, err, refused.because)
		}
	}
	if n := len(a.list(t)); n != 4 {
		t.Fatalf("%d keys after refusals, want 4", n)
	}
	if _, err := a.plugin.Run(t.Context(), "keys", "retire", far.KeyID, "--no-etcd", "--yes"); err != nil {
		t.Fatal(err)
	}
	if keys := a.list(t); len(keys) != 3 || keys[far.KeyID].KeyID != "" {
		t.Errorf("after keys retire the ring is %+v", keys)
	}
	a.waitStatus(t, current.KeyID, "ok")
	client := a.dial(t)
	a.opens(t, client, a.encrypt(t, client))
}
