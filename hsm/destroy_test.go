package hsm_test

import (
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// holds reports whether the ring on the token, as another connection sees it, has the key.
func (b *bench) holds(id envelope.KeyID) bool {
	b.t.Helper()
	keys, err := b.set.Keys(b.within(10 * time.Second))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, k := range keys {
		if k.ID == id {
			return true
		}
	}
	return false
}

// A sequence that was abandoned before it destroyed anything never does: its caller was told that the key is kept.
func TestDestroyAbandonedBefore(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.generate(time.Now().Add(time.Hour))
	b.start()
	id := b.ring.View().Versions[1].ID
	b.module.ResetCounters()
	b.module.DelayCall("C_FindObjectsInit", 3*b.cfg.CallTimeout/2).After(1).Once() // the first one is the plan's
	all, err := b.set.Destroy(t.Context(), id)
	if err == nil || len(all) != 1 || all[0].Outcome != hsm.Kept || all[0].Err == nil {
		t.Fatalf("%+v, %v", all, err)
	}
	if err := b.module.WaitIdle(b.within(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n := b.module.Calls("C_DestroyObject"); n != 0 || !b.holds(id) {
		t.Errorf("it was destroyed later, with %d calls", n)
	}
	if all, err := b.set.Destroy(t.Context(), id); err != nil || len(all) != 1 || all[0] != (hsm.Destruction{Token: "hsm-a", Outcome: hsm.Destroyed}) {
		t.Errorf("again: %+v, %v", all, err)
	}
}
