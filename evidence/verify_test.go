package evidence_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
)

func verify(t *testing.T, m evidence.Source, h *hsm, opts evidence.VerifyOptions) *evidence.Verification {
	t.Helper()
	v, err := evidence.Verify(t.Context(), []evidence.Source{m}, h, opts)
	if err != nil {
		t.Fatal(err)
	}
	if sum := v.Verified + v.Skipped + v.Failed + v.Plaintext + v.Others + v.Undecodable; sum != v.Objects {
		t.Errorf("%d objects, their fates sum up to %d", v.Objects, sum)
	}
	return v
}

// Every object is decrypted, each DEK is opened once, and nothing remains of them.
func TestVerify(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := store(t, h, 500)
	old := h.dek("ring/x02/new", 7)
	old.IsKey = true
	m.put("secrets/ns/before-1.29", sealed(t, old, "secrets/ns/before-1.29"))
	m.put("secrets/ns/plain", []byte("k8s\x00"))
	m.put("secrets/ns/cbc", []byte("k8s:enc:aescbc:v1:key1:0123456789abcdef"))
	m.putPast("secrets/ns/past", []byte("k8s:enc:broken"))
	v := verify(t, m, h, evidence.VerifyOptions{})
	if !v.OK || v.Verified != 1001 || v.Plaintext != 1 || v.Others != 1 || v.DEKs != 5 || v.DEKsFailed != 0 || len(v.Keys) != 2 {
		t.Errorf("verification = %+v", v)
	}
	for name, n := range h.calls {
		if n != 1 {
			t.Errorf("%s was opened %d times", name, n)
		}
	}
	for _, dek := range h.handed {
		if !bytes.Equal(dek, make([]byte, len(dek))) {
			t.Error("a DEK was not wiped")
		}
	}
}

func TestVerifySample(t *testing.T) {
	t.Parallel()
	h := newHSM()
	v := verify(t, store(t, h, 500), h, evidence.VerifyOptions{Sample: 3, Parallel: 2})
	if !v.OK || v.Verified != 12 || v.Skipped != 988 || v.DEKs != 4 || len(h.calls) != 4 {
		t.Errorf("verification = %+v", v)
	}
}

func TestVerifyOfSomeResources(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := store(t, h, 2)
	m.put("configmaps/ns/c", sealed(t, h.dek("k", 1), "configmaps/ns/c"))
	if v := verify(t, m, h, evidence.VerifyOptions{Resources: []string{"configmaps"}}); v.Objects != 1 || v.Verified != 1 {
		t.Errorf("verification = %+v", v)
	}
}

// A DEK that cannot be opened is named, with the reason, and does not keep the rest from being verified.
func TestVerifyFailures(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := store(t, h, 50)
	elsewhere := newHSM()
	value := func(path string) []byte { return sealed(t, h.dek("ring/x01/old", 1), path) }
	m.put("secrets/ns/unknown-key", sealed(t, elsewhere.dek("ring/x09/gone", 1), "secrets/ns/unknown-key"))
	m.put("secrets/ns/unknown-key2", sealed(t, elsewhere.dek("ring/x09/gone", 1), "secrets/ns/unknown-key2"))
	m.put("secrets/ns/moved", value("secrets/ns/original"))
	flipped := value("secrets/ns/flipped")
	flipped[bytes.Index(flipped, []byte("ring/x01/old"))-5] ^= 1 // in the data before the key_id
	m.put("secrets/ns/flipped", flipped)
	m.put("secrets/ns/cut", []byte("k8s:enc:kms:v2:hsm-kms:\x0a\xff"))
	short := h.dek("ring/x01/old", 9)
	m.put("secrets/ns/short-dek", sealed(t, short, "secrets/ns/short-dek"))
	h.deks["ring/x01/old wrapped 9"] = []byte("short")
	v := verify(t, m, h, evidence.VerifyOptions{})
	if v.OK || v.Verified != 100 || v.Failed != 5 || v.Undecodable != 1 || v.DEKsFailed != 1 {
		t.Errorf("verification = %+v", v)
	}
	said := fmt.Sprintf("%+v", v.Failures)
	for key, reason := range map[string]string{
		"unknown-key": "unknown key_id", "unknown-key2": "unknown key_id", "moved": "not authentic", "flipped": "not authentic",
		"cut": "unexpected EOF", "short-dek": "using the DEK",
	} {
		found := false
		for _, f := range v.Failures {
			found = found || f.Key == "/registry/secrets/ns/"+key && strings.Contains(f.Reason, reason)
		}
		if !found {
			t.Errorf("%s is not named with %q: %s", key, reason, said)
		}
	}
	if data, err := json.Marshal(v); err != nil || strings.Contains(string(data), "canary") {
		t.Errorf("the outcome holds plaintext: %s, %v", data, err)
	} else if strings.Contains(string(data), "clusterUIDs") {
		t.Errorf("a verification does not look for clusters, and says which there are: %s", data)
	}
}

// An HSM that is away for a moment says nothing of a DEK; one that stays away ends the work with an error.
func TestVerifyHSMAway(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := store(t, h, 10)
	h.fail = []error{envelope.ErrBusy, envelope.ErrUnavailable}
	if v := verify(t, m, h, evidence.VerifyOptions{}); !v.OK || v.Verified != 20 {
		t.Errorf("verification = %+v", v)
	}
	h = newHSM()
	m = store(t, h, 1000)
	for _, err := range []error{envelope.ErrPINRefused} {
		for range 100 {
			h.fail = append(h.fail, err)
		}
	}
	if _, err := evidence.Verify(t.Context(), []evidence.Source{m}, h, evidence.VerifyOptions{}); !errors.Is(err, envelope.ErrPINRefused) {
		t.Errorf("error = %v, want ErrPINRefused", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := evidence.Verify(ctx, []evidence.Source{m}, h, evidence.VerifyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want Canceled", err)
	}
}

func TestRecover(t *testing.T) {
	t.Parallel()
	h := newHSM()
	m := &memory{}
	m.put("secrets/ns/a", sealed(t, h.dek("k", 1), "secrets/ns/a"))
	m.put("secrets/ns/plain", []byte("k8s\x00plain"))
	m.put("secrets/ns/cbc", []byte("k8s:enc:aescbc:v1:key1:0123456789abcdef"))
	m.put("secrets/ns/cut", []byte("k8s:enc:kms:v2:hsm-kms:"))
	m.put("secrets/ns/moved", sealed(t, h.dek("k", 1), "secrets/ns/original"))
	for path, want := range map[string]string{"secrets/ns/a": "canary of secrets/ns/a", "secrets/ns/plain": "k8s\x00plain"} {
		r, object, err := evidence.Locate(t.Context(), m, "/registry/"+path)
		if err == nil {
			err = evidence.Recover(t.Context(), h, r, object)
		}
		if err != nil || string(r.Plain) != want {
			t.Errorf("%s: %q, %v", path, r.Plain, err)
		}
	}
	for _, path := range []string{"secrets/ns/cbc", "secrets/ns/cut", "secrets/ns/missing"} {
		if _, _, err := evidence.Locate(t.Context(), m, "/registry/"+path); err == nil {
			t.Errorf("%s was located", path)
		}
	}
	r, object, err := evidence.Locate(t.Context(), m, "/registry/secrets/ns/moved")
	if err != nil {
		t.Fatal(err)
	}
	if err := evidence.Recover(t.Context(), h, r, object); err == nil || r.Plain != nil {
		t.Errorf("an object that was moved gives %q, %v", r.Plain, err)
	}
}
