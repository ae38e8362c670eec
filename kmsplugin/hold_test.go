package kmsplugin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
)

// holdRing is a fakeRing with what a hold needs: envelopes that have the form of one, and hold keys.
type holdRing struct{ *fakeRing }

func (r holdRing) Views() []envelope.View {
	view := r.Advance()
	view.Ring, view.LastRead = "ring", time.Now()
	return []envelope.View{view}
}

func (r holdRing) HoldKey(ctx context.Context, id envelope.KeyID, day envelope.Day) (envelope.HoldKey, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s %d", id, day)), r.Exercise(ctx)
}

func newHoldRing(t *testing.T) (holdRing, envelope.KeyID) {
	ring, id := newRing(t)
	ring.seal = func(ctx context.Context, _ envelope.KeyID, dek []byte) ([]byte, error) {
		sealed := append(bytes.Clone(dek), make([]byte, envelope.TagSize)...)
		return envelope.Envelope{Profile: envelope.AESGCM, Unique: []byte("nonce of 12 "), Sealed: sealed}.Marshal(), ring.Exercise(ctx)
	}
	ring.open = func(ctx context.Context, _ string, sealed []byte) ([]byte, error) {
		e, err := envelope.Parse(sealed)
		if err != nil {
			return nil, err
		}
		return bytes.Clone(e.Sealed[:len(e.Sealed)-envelope.TagSize]), ring.Exercise(ctx)
	}
	return holdRing{ring}, id
}

// A plugin with a hold, as kube-apiserver and an auditor see it.
func TestHoldOverTheSocket(t *testing.T) {
	t.Parallel()
	ring, id := newHoldRing(t)
	told := &records{}
	stand := hold.New(hold.Config{Ring: ring, StateDir: t.TempDir(), Limit: time.Hour, CallTimeout: 2 * time.Second})
	p := run(t, Options{Ring: ring, Hold: stand, Recorder: told, ProbeInterval: time.Second})
	c := client(t, p.path)
	dek := bytes.Repeat([]byte{5}, 32)
	encrypt := func() *kmsapi.EncryptResponse {
		t.Helper()
		answer, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: bytes.Clone(dek), Uid: "u"})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	says := func(keyID, healthz string, holding bool) {
		t.Helper()
		answer, err := StatusOf(t.Context(), p.path)
		if err != nil || answer.KeyID != keyID || answer.Healthz != healthz || answer.Hold == nil || answer.Hold.Holding != holding {
			t.Errorf("Status: %+v, %+v, %v", answer, answer.Hold, err)
		}
	}
	before := encrypt()
	if told.last().OnHold {
		t.Error("an operation of the HSM is recorded as one on hold")
	}
	eventually(t, "armed", func() bool { return stand.State().Armed })
	says(id.String(), "ok", false)
	if p.OnHold() != "" {
		t.Error(p.OnHold())
	}

	away := fmt.Errorf("token: %w", envelope.ErrUnavailable)
	ring.set(func(r *fakeRing) { r.exercise = func(context.Context) error { return away } })
	opened, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: before.Ciphertext, KeyId: before.KeyId})
	if err != nil || !bytes.Equal(opened.Plaintext, dek) {
		t.Errorf("Decrypt: %v", err)
	}
	if !told.last().OnHold || told.last().Code != codes.OK {
		t.Errorf("recorded as %+v", told.last())
	}
	says(id.String(), "ok", true)
	in := encrypt()
	if in.KeyId != id.HoldString() || told.last().KeyID != in.KeyId || !told.last().OnHold {
		t.Errorf("Encrypt under %s, recorded as %+v", in.KeyId, told.last())
	}
	says(id.HoldString(), "ok", true)
	if text := p.OnHold(); !strings.HasPrefix(text, "on the outage hold since ") || !strings.Contains(text, "do not restart this plugin") {
		t.Errorf("%q", text)
	}
	theirs := bytes.Clone(before.Ciphertext)
	theirs[5]++
	if _, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: theirs, KeyId: id.String()}); status.Code(err) != codes.Unavailable {
		t.Errorf("a DEK that is not held: %v", err)
	}
	if !told.last().OnHold || told.last().Code != codes.Unavailable {
		t.Errorf("recorded as %+v", told.last())
	}
	says(id.HoldString(), "the HSM is away, and the outage hold does not have what is asked for", true)

	// A revocation: Status is an error, and its trailer still tells of the hold.
	ring.set(func(r *fakeRing) {
		r.exercise = func(context.Context) error { return fmt.Errorf("token: %w", envelope.ErrPINRefused) }
	})
	eventually(t, "wiped", func() bool { return stand.State().Held == 0 })
	answer, err := StatusOf(t.Context(), p.path)
	if status.Code(err) != codes.FailedPrecondition || answer.Hold == nil || answer.Hold.Holding {
		t.Errorf("Status: %+v, %v", answer, err)
	}
}

// Without a hold no request has an allocation more for it.
func TestNoHoldCostsNothing(t *testing.T) {
	ring, id := newRing(t)
	s := &service{ring: ring}
	named := &namedKey{id: id, text: id.String()}
	dek := bytes.Repeat([]byte{5}, 32)
	bare := testing.AllocsPerRun(100, func() { _, _ = ring.Seal(t.Context(), id, dek) })
	through := testing.AllocsPerRun(100, func() { _, _, _ = s.seal(t.Context(), named, dek) })
	if through != bare {
		t.Errorf("%v allocations, and %v of the ring itself", through, bare)
	}
}
