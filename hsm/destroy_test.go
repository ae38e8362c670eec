package hsm_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// holds reports whether the token has the key.
func (b *bench) holds(id envelope.KeyID) (held bool) {
	b.t.Helper()
	b.eventually(20*time.Second, func() error { // calls may have been refused while one hung
		keys, err := b.set.Keys(b.t.Context())
		held = slices.ContainsFunc(keys, func(k envelope.Key) bool { return k.ID == id })
		return err
	})
	return held
}

// A sequence that was abandoned before it destroyed anything never does: its caller was told that the key is kept.
func TestDestroyAbandonedBefore(t *testing.T) {
	t.Parallel()
	b := newBench(t, impatient)
	b.generate(time.Now().Add(time.Hour))
	b.start()
	id := b.ring.Advance().Versions[1].ID
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

// A token that answers nothing any more: what became of the key is unknown, and stays so until it can be looked at.
func TestDestroyUnknown(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 200 * time.Millisecond })
	b.generate(time.Now().Add(time.Hour))
	b.start()
	id := b.ring.Advance().Versions[1].ID
	b.module.HangCall("C_DestroyObject").Once()
	type result struct {
		all []hsm.Destruction
		err error
	}
	done := make(chan result)
	go func() {
		all, err := b.set.Destroy(context.Background(), id)
		done <- result{all, err}
	}()
	if err := b.module.WaitHung(b.within(10*time.Second), "C_DestroyObject", 1); err != nil {
		t.Fatal(err)
	}
	b.module.FailAll(pkcs11.CKR_DEVICE_ERROR).UntilCleared() // the call that hangs goes on, and does its work
	if got := <-done; got.err == nil || len(got.all) != 1 || got.all[0].Outcome != hsm.Unknown || got.all[0].Err == nil {
		t.Errorf("%+v", got)
	}
	b.module.Clear()
	b.eventually(20*time.Second, func() error {
		all, err := b.set.Destroy(t.Context(), id)
		if err == nil && len(all) != 0 {
			t.Errorf("again: %+v", all)
		}
		return err
	})
	if b.holds(id) {
		t.Error("the key is there")
	}
}
