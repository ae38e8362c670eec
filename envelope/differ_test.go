package envelope

import (
	"context"
	"crypto/cipher"
	"errors"
	"testing"
	"time"
)

// TestStartWhileTokensDiffer: a process that knows no earlier key, and whose tokens do not all hold the newest one, or
// cannot all use it, starts with the newest that works on all of them and says which one it holds back.
func TestStartWhileTokensDiffer(t *testing.T) {
	t.Parallel()
	older, key, newest := keyAt(noon.Add(-3*time.Hour), "older"), keyAt(noon.Add(-2*time.Hour), "key"), keyAt(noon.Add(-time.Hour), "newest")
	broken := newSoftToken("b", older, key, newest)
	broken.held[newest.ID] = nil
	for name, tokens := range map[string][]*softToken{
		"the copy is late on the second":   {newSoftToken("a", older, key, newest), newSoftToken("b", older, key)},
		"the copy is late on the first":    {newSoftToken("a", older, key), newSoftToken("b", older, key, newest)},
		"the second cannot use its copy":   {newSoftToken("a", older, key, newest), broken},
		"each lacks another one":           {newSoftToken("a", key, newest), newSoftToken("b", older, key)},
		"three tokens, the last one is it": {newSoftToken("a", older, key, newest), newSoftToken("b", key, newest), newSoftToken("c", older, key)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newSoftRing(t, newClock(), RingConfig{}, tokens...)
			exercised(t, r)
			expect(t, r, key, newest, nil)
		})
	}
}

// TestStartWhileTokensDifferAndNoneServes: with no key that works on all, that is said; when a token cannot even be asked,
// its error is.
func TestStartWhileTokensDifferAndNoneServes(t *testing.T) {
	t.Parallel()
	key, newest := keyAt(noon.Add(-2*time.Hour), "key"), keyAt(noon.Add(-time.Hour), "newest")
	a, b := newSoftToken("a", newest), newSoftToken("b", key)
	r := newSoftRing(t, newClock(), RingConfig{}, a, b)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrNotProven) {
		t.Errorf("Exercise: %v, want %v", err, ErrNotProven)
	}
	b.failWith(context.DeadlineExceeded)
	if err := r.Exercise(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Exercise: %v, want %v", err, context.DeadlineExceeded)
	}
	b.failWith(nil)
	b.add(newest)
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	exercised(t, r)
	expect(t, r, newest, softKey{}, nil)
	a.decrypt = func(cipher.AEAD, []byte, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }
	b.decrypt = a.decrypt
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrSelfTest) {
		t.Errorf("Exercise: %v, want %v", err, ErrSelfTest)
	}
}

// TestWithdrawnWhileTheRingCouldNotBeRead: a pending key that is destroyed while this process cannot re-read the ring
// becomes current by the clock, and fails. As soon as the ring is read it is as if it had never been.
func TestWithdrawnWhileTheRingCouldNotBeRead(t *testing.T) {
	t.Parallel()
	c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(time.Hour), "next")
	token := newSoftToken("a", key, next)
	r := newSoftRing(t, c, RingConfig{}, token)
	exercised(t, r)
	token.remove(next.ID)
	c.move(2 * time.Hour)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("Exercise: %v, want %v", err, ErrUnknownKey)
	}
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	exercised(t, r)
	expect(t, r, key, softKey{}, nil)
	if r.Floor() != key.ID {
		t.Errorf("the floor is %s", r.Floor())
	}
}

// TestWithdrawnWhileATokenIsAway: a pending key that was destroyed on every token is still listed for one that cannot be
// reached from here. What was proven of it on the other one counts no more.
func TestWithdrawnWhileATokenIsAway(t *testing.T) {
	t.Parallel()
	for name, reread := range map[string]time.Duration{"re-read before its activation": 0, "re-read after its activation": 2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(time.Hour), "next")
			a, b := newSoftToken("a", key, next), newSoftToken("b", key, next)
			r := newSoftRing(t, c, RingConfig{}, a, b)
			exercised(t, r)
			b.connect(0)
			a.remove(next.ID)
			b.remove(next.ID)
			c.move(reread)
			r.Advance()
			refreshed(t, r)
			c.move(2*time.Hour - reread)
			expect(t, r, key, next, nil)
			exercised(t, r)
			b.connect(2)
			refreshed(t, r)
			exercised(t, r)
			expect(t, r, key, softKey{}, nil)
		})
	}
}

// TestCurrentKeyThatIsGone: one that did anything as the current key is missed.
func TestCurrentKeyThatIsGone(t *testing.T) {
	t.Parallel()
	older, key := keyAt(noon.Add(-2*time.Hour), "older"), keyAt(noon.Add(-time.Hour), "key")
	for name, use := range map[string]func(*Ring) error{
		"exercised": func(r *Ring) error { return r.Exercise(context.Background()) },
		"sealed under": func(r *Ring) error {
			_, err := r.Seal(context.Background(), key.ID, []byte("dek"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token := newSoftToken("a", older, key)
			r := newSoftRing(t, newClock(), RingConfig{}, token)
			exercised(t, r) // proves it, and that alone is no use
			if err := use(r); err != nil {
				t.Fatal(err)
			}
			token.remove(key.ID)
			if err := r.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			expect(t, r, softKey{}, softKey{}, ErrKeyMissing)
		})
	}
}
