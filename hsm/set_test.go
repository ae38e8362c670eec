package hsm_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hsm-kms/hsm-kms/envelope"
)

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	dek := bytes.Repeat([]byte{7}, 32)
	id := b.current()
	wrapped, err := b.ring.Seal(t.Context(), id, dek)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := b.ring.Open(t.Context(), id.String(), wrapped)
	if err != nil || !bytes.Equal(opened, dek) {
		t.Fatalf("opened %x, %v", opened, err)
	}
	for i := range wrapped {
		changed := bytes.Clone(wrapped)
		changed[i] ^= 0x40
		_, err := b.ring.Open(t.Context(), id.String(), changed)
		if !errors.Is(err, envelope.ErrUnauthentic) && !errors.Is(err, envelope.ErrMalformed) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if n := b.module.Calls("C_Initialize"); n > 5 {
		t.Errorf("tampered envelopes led to %d calls of C_Initialize", n)
	}
	if n := b.module.MaxOpenSessions(); n > b.cfg.MaxSessions+1 {
		t.Errorf("%d sessions were open at once", n)
	}
	t.Logf("initialised %d times, %d sessions at most, %d logins", b.module.Calls("C_Initialize"), b.module.MaxOpenSessions(), b.module.Logins())
	b.stop()
	if n := b.module.OpenSessions(); n != 0 {
		t.Errorf("%d sessions left open", n)
	}
	if t.Failed() {
		t.Log(b.log)
	}
}
