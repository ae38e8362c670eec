package kmsplugin

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// A read ring that is away leaves Status ok, and Encrypt as it is; Status tells of it to those who want to know, and a key that
// it lacks is answered with what it holds.
func TestReadRingAway(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	old, oldID := newRing(t)
	old.set(func(r *fakeRing) {
		v := r.view.Versions[0]
		v.ID.Ring, v.State, v.Works = "old", envelope.Retained, false
		r.view = envelope.View{Versions: []envelope.Version{v}}
		r.exercise = func(context.Context) error { return envelope.ErrUnavailable }
	})
	oldID.Ring = "old"
	reader := health.NewReader(health.ReaderConfig{Name: "old", Ring: old, Retiring: true})
	ring.set(func(r *fakeRing) {
		r.open = func(context.Context, string, []byte) ([]byte, error) { return nil, envelope.ErrUnknownKey }
	})
	p := run(t, Options{Ring: ring, ReadRings: []*health.Reader{reader}, ProbeInterval: time.Second})
	c := client(t, p.path)

	answer, err := StatusOf(t.Context(), p.path)
	if err != nil || answer.Healthz != "ok" || answer.KeyID != id.String() {
		t.Fatalf("Status: %+v, %v", answer, err)
	}
	if words, _, _ := p.Health(); words != "ok" {
		t.Errorf("Health: %s", words)
	}
	eventually(t, "the read ring is reported", func() bool {
		answer, err = StatusOf(t.Context(), p.path)
		return err == nil && len(answer.ReadRings) == 1 && answer.ReadRings[0].Problem.Error() == "the HSM is unavailable"
	})
	if r := answer.ReadRings[0]; r.Ring != "old" || r.Keys != 1 || r.Proven != 0 || !r.Retiring {
		t.Errorf("the read ring: %+v", r)
	}
	if err := p.ReadProblem(); !errors.Is(err, envelope.ErrUnavailable) || !strings.Contains(err.Error(), "the read ring old") {
		t.Errorf("ReadProblem: %v", err)
	}
	if _, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek"), Uid: "u"}); err != nil {
		t.Errorf("Encrypt: %v", err)
	}
	for keyID, holds := range map[envelope.KeyID]string{oldID: "the ring holds old/", id: "the ring holds ring/"} {
		_, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: keyID.String(), Uid: "u"})
		if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), holds) {
			t.Errorf("Decrypt: %v; want %q", err, holds)
		}
	}
}

// The trailer is bounded and understood, or left out.
func TestReadRingTrailer(t *testing.T) {
	t.Parallel()
	for _, want := range []health.ReadRing{
		{Ring: "old", Keys: 3, Proven: 3},
		{Ring: "kube-old.1", Keys: 3, Proven: 2, Retiring: true, Problem: envelope.ErrUnavailable},
		{Ring: "new", Problem: envelope.ErrRingEmpty},
	} {
		got := readRingsIn(metadata.MD{readRingTrailer: {readRingValue(want)}})
		if len(got) != 1 || got[0].Ring != want.Ring || got[0].Keys != want.Keys || got[0].Proven != want.Proven || got[0].Retiring != want.Retiring || (got[0].Problem == nil) != (want.Problem == nil) {
			t.Errorf("%+v came back as %+v", want, got)
		}
	}
	for _, odd := range []string{"", "old", "old 1 1 serving", "old one 1 serving ok", "o/d 1 1 serving ok", "Old 1 1 serving ok"} {
		if got := readRingsIn(metadata.MD{readRingTrailer: {odd}}); len(got) != 0 {
			t.Errorf("%q is taken for %+v", odd, got)
		}
	}
}
