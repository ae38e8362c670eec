package kmsplugin

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	rec := &records{}
	p := run(t, Options{Ring: ring, Recorder: rec, Metrics: rec})
	c := client(t, p.path)

	st, err := c.Status(t.Context(), &kmsapi.StatusRequest{})
	if err != nil || st.Version != "v2" || st.Healthz != "ok" || st.KeyId != id.String() {
		t.Fatalf("Status = %v, %v", st, err)
	}
	enc, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek"), Uid: "u1"})
	if err != nil || enc.KeyId != st.KeyId || len(enc.Annotations) != 0 {
		t.Fatalf("Encrypt = %v, %v", enc, err)
	}
	op := rec.last()
	if op.Operation != OperationEncrypt || op.RequestUID != "u1" || op.KeyID != id.String() || op.Code != codes.OK ||
		op.Duration <= 0 || op.Peer.PID != os.Getpid() || int(op.Peer.UID) != os.Geteuid() || op.Peer.Executable == "" {
		t.Errorf("record of Encrypt: %+v", op)
	}
	dec, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: enc.Ciphertext, KeyId: enc.KeyId, Uid: "u2"})
	if err != nil || string(dec.Plaintext) != "dek" {
		t.Fatalf("Decrypt = %v, %v", dec, err)
	}
	if op := rec.last(); op.Operation != OperationDecrypt || op.RequestUID != "u2" || op.KeyID != id.String() || op.Code != codes.OK {
		t.Errorf("record of Decrypt: %+v", op)
	}
	answer, err := StatusOf(t.Context(), p.path)
	if err != nil || answer.Version != "v2" || answer.Healthz != "ok" || answer.KeyID != id.String() || len(answer.Pending) != 0 {
		t.Errorf("StatusOf = %v, %v", answer, err)
	}
	if rec.count() != 2 || rec.status != 2 {
		t.Errorf("%d records and %d counted Status, want 2 and 2: Status leaves no record", rec.count(), rec.status)
	}
}

func TestEncryptBounds(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	rec := &records{}
	p := run(t, Options{Ring: ring, Recorder: rec})
	c := client(t, p.path)
	for size, want := range map[int]codes.Code{0: codes.InvalidArgument, 1: codes.OK, envelope.MaxDEK: codes.OK, envelope.MaxDEK + 1: codes.InvalidArgument} {
		_, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: make([]byte, size)})
		if status.Code(err) != want || rec.last().Code != want {
			t.Errorf("%d bytes: %v, recorded %v, want %v", size, err, rec.last().Code, want)
		}
	}
	ring.set(func(r *fakeRing) {
		r.seal = func(context.Context, envelope.KeyID, []byte) ([]byte, error) {
			return make([]byte, maxCiphertext+1), nil
		}
	})
	if _, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek")}); status.Code(err) != codes.Internal {
		t.Errorf("an answer that the API server would refuse: %v", err)
	}
}

func TestAnnotationsAreRefused(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring})
	_, err := client(t, p.path).Decrypt(t.Context(), &kmsapi.DecryptRequest{
		Ciphertext: []byte("sealed:x"), KeyId: id.String(), Annotations: map[string][]byte{"a.example.com": nil},
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("error = %v", err)
	}
}

// Encrypt goes by what Status said last, even when the ring has moved on.
func TestEncryptUnderTheKeyOfStatus(t *testing.T) {
	t.Parallel()
	ring, old := newRing(t)
	p := run(t, Options{Ring: ring, ProbeInterval: 20 * time.Millisecond})
	c := client(t, p.path)
	encrypt := func() string {
		answer, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek")})
		if err != nil {
			t.Fatal(err)
		}
		return answer.KeyId
	}
	if got := encrypt(); got != old.String() {
		t.Fatalf("before any Status: %s", got)
	}
	next := newVersion(t, time.Now())
	ring.set(func(r *fakeRing) { r.view = envelope.View{Versions: []envelope.Version{next}, Current: &next} })
	eventually(t, "the probe names the next key", func() bool {
		_, keyID, _ := p.Health()
		return keyID == next.ID.String()
	})
	if got := encrypt(); got != old.String() {
		t.Errorf("before the next Status: %s, want %s", got, old)
	}
	if _, err := c.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := encrypt(); got != next.ID.String() {
		t.Errorf("after it: %s, want %s", got, next.ID)
	}
}

func TestEncryptBeforeAnyStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*fakeRing)
		want   codes.Code
	}{
		"not ready": {func(r *fakeRing) { r.view.Current.Works = false }, codes.FailedPrecondition},
		"not ready, and the HSM away": {func(r *fakeRing) {
			r.view.Current.Works = false
			r.exercise = func(context.Context) error { return envelope.ErrUnavailable }
		}, codes.Unavailable},
		"none":          {func(r *fakeRing) { r.view.Current, r.view.Problem = nil, envelope.ErrNotProven }, codes.FailedPrecondition},
		"none, no word": {func(r *fakeRing) { r.view.Current = nil }, codes.FailedPrecondition},
		"empty": {func(r *fakeRing) {
			r.view = envelope.View{Problem: envelope.ErrRingEmpty}
			r.exercise = func(context.Context) error { return envelope.ErrRingEmpty }
		}, codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ring, _ := newRing(t)
			c.change(ring)
			p := run(t, Options{Ring: ring})
			_, err := client(t, p.path).Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek")})
			if status.Code(err) != c.want {
				t.Errorf("error = %v, want %v", err, c.want)
			}
		})
	}
}

// While the current key does not open what it seals, Encrypt refuses, though sealing would work.
func TestEncryptStopsWithStatus(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring, ProbeInterval: 20 * time.Millisecond})
	c := client(t, p.path)
	if _, err := c.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	ring.set(func(r *fakeRing) { r.exercise = func(context.Context) error { return envelope.ErrSelfTest } })
	eventually(t, "Status is an error", func() bool {
		_, err := c.Status(t.Context(), &kmsapi.StatusRequest{})
		return status.Code(err) == codes.FailedPrecondition
	})
	if _, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek")}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Encrypt: %v", err)
	}
	if _, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("sealed:x"), KeyId: id.String()}); err != nil {
		t.Errorf("Decrypt must go on: %v", err)
	}
}

// A DEK whose record was to be kept and was not is not handed out.
func TestNoAnswerWithoutItsRecord(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	rec := &records{err: errors.New("disk full: /var/log/x")}
	p := run(t, Options{Ring: ring, Recorder: rec})
	var dek []byte
	ring.set(func(r *fakeRing) {
		r.open = func(context.Context, string, []byte) ([]byte, error) {
			dek = []byte("the plaintext DEK")
			return dek, nil
		}
	})
	answer, err := client(t, p.path).Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
	if status.Code(err) != codes.Unavailable || answer != nil || strings.Contains(err.Error(), "/var") {
		t.Errorf("Decrypt = %v, %v", answer, err)
	}
	if !bytes.Equal(dek, make([]byte, len(dek))) {
		t.Errorf("the DEK was not wiped: %q", dek)
	}
}

// The plaintext is gone from both messages once they are done with.
func TestPlaintextIsWiped(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring})
	var request, answer []byte
	ring.set(func(r *fakeRing) {
		r.seal = func(_ context.Context, _ envelope.KeyID, dek []byte) ([]byte, error) {
			request = dek
			return []byte("sealed"), nil
		}
		r.open = func(context.Context, string, []byte) ([]byte, error) {
			answer = []byte("the plaintext DEK")
			return answer, nil
		}
	})
	c := client(t, p.path)
	if _, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("the plaintext DEK")}); err != nil {
		t.Fatal(err)
	}
	dec, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
	if err != nil || string(dec.Plaintext) != "the plaintext DEK" {
		t.Fatalf("Decrypt = %v, %v: wiped too early?", dec, err)
	}
	for name, b := range map[string][]byte{"request": request, "answer": answer} {
		if len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("the plaintext of the %s is still there: %q", name, b)
		}
	}
}
