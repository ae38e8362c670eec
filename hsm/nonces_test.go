package hsm_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// Every nonce counts: two for the self-test of a connection, one for a probe, one for a request. A new connection does not
// begin again.
func TestNonces(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	id := b.current()
	nonces := func() uint64 { return b.set.Members()[0].(*hsm.Token).Nonces()[id] }
	if n := nonces(); n != 3 {
		t.Errorf("%d after the start, want 3", n)
	}
	for range 5 {
		if _, err := b.ring.Seal(t.Context(), id, []byte("dek")); err != nil {
			t.Fatal(err)
		}
	}
	if n := nonces(); n != 8 {
		t.Errorf("%d after 5 seals, want 8", n)
	}
	before := b.set.Members()[0].Generation()
	b.module.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	if _, err := b.ring.Seal(t.Context(), id, []byte("dek")); err == nil {
		t.Error("sealed without a token")
	}
	b.eventually(10*time.Second, func() error {
		if now := b.set.Members()[0].Generation(); now != 0 {
			return fmt.Errorf("generation %d", now)
		}
		return nil
	})
	b.module.Clear()
	b.eventually(10*time.Second, func() error {
		if now := b.set.Members()[0].Generation(); now <= before {
			return fmt.Errorf("generation %d", now)
		}
		return nil
	})
	if n := nonces(); n < 11 {
		t.Errorf("%d after another connection, want 11 at least", n)
	}
}

// A salt makes a key for each seal: there is nothing to count.
func TestNoNoncesWithoutGCM(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *hsm.Config, _ *hsm.TokenConfig) { c.Profile = envelope.HMACKDF }).start()
	if _, err := b.ring.Seal(t.Context(), b.current(), []byte("dek")); err != nil {
		t.Fatal(err)
	}
	if n := b.set.Members()[0].(*hsm.Token).Nonces(); len(n) != 0 {
		t.Errorf("%v", n)
	}
}
