package hold

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

var errAway = fmt.Errorf("token hsm-a: %w: CKR_DEVICE_ERROR", envelope.ErrUnavailable)

// From the HSM going away to its return, as an API server sees it.
func TestOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		if s := r.State(); s.Armed || s.Why == "" {
			t.Errorf("a hold without a DEK is armed: %+v", s)
		}
		before, dek := r.write(t)
		if before.OnHold || before.KeyID != id.String() {
			t.Errorf("%+v", before)
		}
		at(2 * time.Second)
		if s := r.State(); !s.Armed || s.Held != 1 || s.Listed != 1 {
			t.Fatalf("not armed: %+v", s)
		}

		ring.fail(errAway)
		r.mustRead(t, before, dek) // the failing request itself
		r.mustStatus(t, id.String(), nil)
		in, inDEK := r.write(t)
		if !in.OnHold || in.KeyID != id.HoldString() {
			t.Errorf("%+v", in)
		}
		r.mustStatus(t, id.HoldString(), nil)
		r.mustRead(t, in, inDEK)
		at(10 * time.Minute)
		r.mustStatus(t, id.HoldString(), nil)
		if s := r.State(); !s.Holding || s.Used < 10*time.Minute || s.Until.Sub(r.clock.now()) > 50*time.Minute {
			t.Errorf("%+v", s)
		}
		calls, _ := ring.asked()
		r.mustRead(t, before, dek)
		r.write(t)
		if after, _ := ring.asked(); after != calls {
			t.Errorf("requests on hold made %d calls", after-calls)
		}

		ring.fail(nil)
		at(35 * time.Second)
		r.mustStatus(t, id.String(), nil)
		r.mustRead(t, in, inDEK) // by the HSM now
		after, _ := r.write(t)
		if after.OnHold || after.KeyID != id.String() {
			t.Errorf("%+v", after)
		}
		for name, want := range map[string]int{EventArmed: 1, EventProof: 1, EventBegan: 1, EventEnded: 1, EventWiped: 0} {
			if n := r.count(name); n != want {
				t.Errorf("%d records %s, want %d", n, name, want)
			}
		}
	})
}

// A hold that is not armed stands in for nothing.
func TestNotArmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		a, _ := r.write(t)
		r.store.list(id.String(), []byte("listed, and not held"))
		ring.fail(errAway)
		if _, err := r.read(a); !errors.Is(err, envelope.ErrUnavailable) || r.Holding() {
			t.Errorf("%v, holding %t", err, r.Holding())
		}
	})
}

// The first Decrypt that cannot be answered makes Status not ok; what is held is answered all the same.
func TestDecryptThatIsNotHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		mine, dek := r.write(t)
		theirs, err := ring.Seal(bg, id, dek) // by another node
		if err != nil {
			t.Fatal(err)
		}
		at(2 * time.Second)
		ring.fail(errAway)
		r.mustRead(t, mine, dek)
		r.mustStatus(t, id.String(), nil)
		for name, bad := range map[string]Answer{
			"malformed": {KeyID: id.String(), Bytes: []byte("nothing")}, "no key_id": {KeyID: "x", Bytes: theirs},
			"K/hold with another profile": {KeyID: id.HoldString(), Bytes: theirs}, "ring": {KeyID: "o" + id.String(), Bytes: theirs},
		} {
			if _, err := r.read(bad); err == nil || errors.Is(err, problem.ErrNotHeld) {
				t.Errorf("%s: %v", name, err)
			}
			r.mustStatus(t, id.String(), nil)
		}
		if _, err := r.Open(bg, id.String(), theirs); !errors.Is(err, problem.ErrNotHeld) {
			t.Errorf("%v", err)
		}
		r.mustStatus(t, id.String(), problem.ErrNotHeld)
		r.mustRead(t, mine, dek)
		ring.fail(nil)
		at(35 * time.Second)
		r.mustStatus(t, id.String(), nil)
		if _, err := r.Open(bg, id.String(), theirs); err != nil {
			t.Error(err)
		}
	})
}

// A failure by which the HSM is there, and must not be used or does not have the key, wipes. One that says neither changes nothing.
func TestWhatFailuresMean(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err         error
		holds, held bool
	}{
		"away":           {errAway, true, true},
		"time-out":       {fmt.Errorf("%w", errDeadline), true, true},
		"PIN refused":    {fmt.Errorf("token: %w: CKR_PIN_INCORRECT", envelope.ErrPINRefused), false, false},
		"PIN expired":    {fmt.Errorf("token: %w", envelope.ErrPINExpired), false, false},
		"one refuses":    {errors.Join(fmt.Errorf("%w", envelope.ErrPINRefused), errAway), false, false},
		"self-test":      {fmt.Errorf("token: %w", envelope.ErrSelfTest), false, false},
		"PIN locked":     {fmt.Errorf("token: %w", envelope.ErrPINLocked), false, true},
		"key suspended":  {fmt.Errorf("token: %w: %w", envelope.ErrUnavailable, envelope.ErrKeySuspended), false, true},
		"deadly request": {fmt.Errorf("token: %w: %w", envelope.ErrUnavailable, envelope.ErrDeadly), false, true},
		"busy":           {fmt.Errorf("token: %w", envelope.ErrBusy), false, true},
		"ambiguous":      {fmt.Errorf("ring: %w", envelope.ErrAmbiguous), false, true},
		"repeated nonce": {fmt.Errorf("token: %w", envelope.ErrNonceRepeated), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, onHold := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					ring, id := newRing(t)
					r := start(t, ring, id, t.TempDir())
					a, dek := r.write(t)
					at(2 * time.Second)
					if onHold {
						ring.fail(errAway)
						r.mustRead(t, a, dek)
					}
					ring.fail(c.err)
					at(35 * time.Second) // the probe sees it
					if r.Holding() != (c.holds || onHold && errors.Is(c.err, envelope.ErrBusy)) {
						t.Errorf("on hold: %t", r.Holding())
					}
					if held := r.State().Held == 1; held != c.held {
						t.Errorf("held: %t", held)
					}
					if _, err := r.read(a); (err == nil) != r.Holding() {
						t.Errorf("Decrypt: %v", err)
					}
					if status, problem := r.status(); c.holds == (problem != nil) && !r.Holding() || !c.held && !errors.Is(c.err, envelope.ErrSelfTest) && status != "" {
						t.Errorf("Status: %q, %v", status, problem)
					}
					ring.fail(nil)
					at(2 * time.Minute)
					if s := r.State(); !s.Armed || s.Holding {
						t.Errorf("afterwards: %+v", s)
					}
				})
			}
		})
	}
}
