package envelope

import (
	"context"
	"crypto/cipher"
	"errors"
	"testing"
	"time"
)

// TestExerciseCosts: the current key each time, a pending key once in a generation, a retained one never.
func TestExerciseCosts(t *testing.T) {
	t.Parallel()
	c := newClock()
	old, key := keyAt(noon.Add(-2*time.Hour), "old"), keyAt(noon.Add(-time.Hour), "key")
	next, last := keyAt(noon.Add(time.Hour), "next"), keyAt(noon.Add(2*time.Hour), "last")
	token := newSoftToken("a", old, key, next, last)
	r := newSoftRing(t, c, RingConfig{}, token)
	exercised(t, r)
	base := map[string]int{}
	count := func(name string, k softKey, want int) {
		t.Helper()
		n := token.used(k.ID)
		if n-base[name] != want {
			t.Errorf("%d operations with the %s key, want %d", n-base[name], name, want)
		}
		base[name] = n
	}
	all := func(o, k, n, l int) {
		t.Helper()
		count("old", old, o)
		count("current", key, k)
		count("next", next, n)
		count("last", last, l)
	}
	all(0, 2, 2, 2) // with none proven, the newest that is due and works is enough
	for range 5 {
		exercised(t, r)
	}
	all(0, 10, 0, 0)
	token.connect(2)
	expect(t, r, key, softKey{}, nil)
	exercised(t, r)
	all(0, 2, 2, 2)
	exercised(t, r)
	all(0, 2, 0, 0)
}

// TestNewGenerationNeedsNewProof: what worked before the HSM was reconnected proves nothing about it now.
func TestNewGenerationNeedsNewProof(t *testing.T) {
	t.Parallel()
	c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(time.Hour), "next")
	token := newSoftToken("a", key, next)
	r := newSoftRing(t, c, RingConfig{}, token)
	exercised(t, r)
	token.connect(2)
	c.move(2 * time.Hour)
	expect(t, r, key, next, nil)
	exercised(t, r)
	expect(t, r, next, softKey{}, nil)
}

// TestAwayIsAskedOnce: a token that does not answer is not asked for one key after the other.
func TestAwayIsAskedOnce(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	next, last := keyAt(noon.Add(time.Hour), "next"), keyAt(noon.Add(2*time.Hour), "last")
	token := newSoftToken("a", key, next, last)
	r := newSoftRing(t, newClock(), RingConfig{}, token)
	exercised(t, r)
	token.connect(2)
	before := token.used(key.ID) + token.used(next.ID) + token.used(last.ID)
	token.failWith(ErrUnavailable)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Exercise: %v", err)
	}
	if n := token.used(key.ID) + token.used(next.ID) + token.used(last.ID) - before; n != 1 {
		t.Errorf("%d operations, want 1", n)
	}
}

// TestPendingKeyThatDoesNotWork: it is not waited for with the current key at stake, and not made current.
func TestPendingKeyThatDoesNotWork(t *testing.T) {
	t.Parallel()
	c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(time.Hour), "next")
	token := newSoftToken("a", key, next)
	token.held[next.ID] = nil
	r := newSoftRing(t, c, RingConfig{}, token)
	exercised(t, r)
	c.move(2 * time.Hour)
	exercised(t, r)
	expect(t, r, key, next, nil)
}

// TestSelfTestFailureOnOneToken: a token that cannot open what it sealed is distrusted, so that nothing is written through
// it, and the other one goes on. It is an error when there is no other.
func TestSelfTestFailureOnOneToken(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	for name, tokens := range map[string][]*softToken{
		"the first":  {newSoftToken("bad", key), newSoftToken("good", key)},
		"the second": {newSoftToken("good", key), newSoftToken("bad", key)},
	} {
		r := newSoftRing(t, newClock(), RingConfig{}, tokens...)
		exercised(t, r)
		for _, token := range tokens {
			if token.name == "bad" {
				token.decrypt = func(cipher.AEAD, []byte, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }
			}
		}
		if err := r.Exercise(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, token := range tokens {
			if bad := token.name == "bad"; bad != errors.Is(token.distrusted, ErrSelfTest) {
				t.Errorf("%s: the token %s was distrusted for %v", name, token.name, token.distrusted)
			}
			token.decrypt = func(cipher.AEAD, []byte, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }
		}
		if err := r.Exercise(t.Context()); !errors.Is(err, ErrSelfTest) {
			t.Errorf("%s, with both at fault: %v", name, err)
		}
		// Being at fault is not being gone: the key stays the current one, so that Status can say what is wrong with it.
		if v := expect(t, r, key, softKey{}, nil); v.Current.Ready {
			t.Errorf("%s: the key still counts as proven", name)
		}
	}
}

// TestExerciseWithTokensAway: one that works is enough; when none can be asked, that is what is said.
func TestExerciseWithTokensAway(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	a, b := newSoftToken("a", key), newSoftToken("b", key)
	r := newSoftRing(t, newClock(), RingConfig{}, a, b)
	exercised(t, r)
	a.connect(0)
	exercised(t, r)
	for _, away := range []error{ErrUnavailable, ErrBusy, ErrPINRefused, context.DeadlineExceeded} {
		b.failWith(away)
		if err := r.Exercise(t.Context()); !errors.Is(err, away) || errors.Is(err, ErrSelfTest) {
			t.Errorf("%v: Exercise says %v", away, err)
		}
		b.failWith(nil)
		// Being out of reach proves nothing either way.
		if v := expect(t, r, key, softKey{}, nil); !v.Current.Ready {
			t.Errorf("%v: the key lost its proof", away)
		}
	}
	b.connect(0)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("all away: %v", err)
	}
	if v := expect(t, r, key, softKey{}, nil); v.Current.Ready {
		t.Error("a key is ready that no token can be asked for")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	a.connect(3)
	if err := r.Exercise(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestExerciseAtTheStart: what is said while there is no current key.
func TestExerciseAtTheStart(t *testing.T) {
	t.Parallel()
	key, older := keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(-2*time.Hour), "older")
	for _, test := range []struct {
		name   string
		tokens []*softToken
		floor  softKey
		make   func(*softToken)
		want   error
	}{
		{"an empty ring", []*softToken{newSoftToken("a")}, softKey{}, nil, ErrRingEmpty},
		{"two keys made elsewhere", []*softToken{newSoftToken("a", foreignKey("1", "1"), foreignKey("2", "2"))}, softKey{}, nil, ErrAmbiguous},
		{"the current key is gone", []*softToken{newSoftToken("a", older)}, key, nil, ErrKeyMissing},
		{"nothing works", []*softToken{newSoftToken("a", key)}, softKey{}, func(s *softToken) {
			s.decrypt = func(cipher.AEAD, []byte, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }
		}, ErrSelfTest},
		{"nothing can be asked", []*softToken{newSoftToken("a", key)}, softKey{}, func(s *softToken) { s.connect(0) }, ErrUnavailable},
		{"the key has not reached the second token", []*softToken{newSoftToken("a", key), newSoftToken("b")}, softKey{}, nil, ErrNotProven},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newSoftRing(t, newClock(), RingConfig{Floor: test.floor.ID}, test.tokens...)
			if test.make != nil {
				test.make(test.tokens[0])
			}
			if err := r.Exercise(t.Context()); !errors.Is(err, test.want) {
				t.Errorf("Exercise: %v, want %v", err, test.want)
			}
		})
	}
}

// TestOneBadKeyDoesNotStopTheStart: with the newest not working, the next older one serves, and that is said.
func TestOneBadKeyDoesNotStopTheStart(t *testing.T) {
	t.Parallel()
	older, key := keyAt(noon.Add(-2*time.Hour), "older"), keyAt(noon.Add(-time.Hour), "key")
	token := newSoftToken("a", older, key)
	token.held[key.ID] = nil
	r := newSoftRing(t, newClock(), RingConfig{}, token)
	exercised(t, r)
	expect(t, r, older, key, nil)
}

// TestExerciseOfTheStandIn: with every key in the future, one exercise is enough to start with the earliest.
func TestExerciseOfTheStandIn(t *testing.T) {
	t.Parallel()
	first, second := keyAt(noon.Add(time.Hour), "first"), keyAt(noon.Add(2*time.Hour), "second")
	for _, tokens := range [][]*softToken{
		{newSoftToken("a", first, second)},
		{newSoftToken("a", first, second), newSoftToken("b", first)}, // the later one has not been copied yet
	} {
		r := newSoftRing(t, newClock(), RingConfig{}, tokens...)
		exercised(t, r)
		expect(t, r, first, softKey{}, nil)
	}
}

// TestTokenThatRecoversDuringAnExercise: what was proven of the generation before does not count for the one after.
func TestTokenThatRecoversDuringAnExercise(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	token := newSoftToken("a", key)
	token.encrypt = func(aead cipher.AEAD, nonce, associated, plaintext []byte) ([]byte, error) {
		token.connect(token.Generation() + 1)
		return aead.Seal(nil, nonce, plaintext, associated), nil
	}
	r := newSoftRing(t, newClock(), RingConfig{}, token)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrNotProven) {
		t.Errorf("Exercise: %v", err)
	}
	token.encrypt = nil
	exercised(t, r)
	expect(t, r, key, softKey{}, nil)
}
