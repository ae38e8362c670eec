package envelope

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// walk is a ring on two tokens to which anything may happen, and what may never happen whatever does.
type walk struct {
	clock   *clock
	tokens  []*softToken
	ring    *Ring
	keys    []softKey      // all that were ever made
	named   map[KeyID]bool // all that were ever current
	latest  KeyID          // the latest that was current and sealed, or was opened under
	sealed  map[KeyID][]byte
	wakings uint64

	lastUp    map[string]time.Time      // by token: when the ring last saw it
	connected map[string]map[KeyID]bool // by token: what it has held since it was last connected
	ever      map[string]map[KeyID]bool // by token: what it has held at all

	grace, patience time.Duration // of the ring
}

// teller is told what is wrong.
type teller interface {
	Context() context.Context
	Fatalf(format string, args ...any) // does not return
}

// walkGrace and walkPatience are the ring's Grace and AbsentAfter.
const walkGrace, walkPatience = 40 * time.Minute, 10 * time.Minute

func newWalk() *walk {
	w := &walk{
		clock: newClock(), tokens: []*softToken{newSoftToken("a"), newSoftToken("b")}, named: map[KeyID]bool{}, sealed: map[KeyID][]byte{}, wakings: 1,
		lastUp: map[string]time.Time{}, connected: map[string]map[KeyID]bool{}, ever: map[string]map[KeyID]bool{},
		grace: walkGrace, patience: walkPatience,
	}
	for _, token := range w.tokens {
		w.connected[token.name], w.ever[token.name] = map[KeyID]bool{}, map[KeyID]bool{}
	}
	w.start(KeyID{})
	return w
}

// start begins a process that knows the floor.
func (w *walk) start(floor KeyID) {
	w.ring = NewRing(RingConfig{Name: "r", Profile: AESGCM, Now: w.clock.Now, Floor: floor, Grace: w.grace, AbsentAfter: w.patience}, softTokens(w.tokens))
	for _, token := range w.tokens {
		w.lastUp[token.name] = w.clock.Now()
	}
}

// put gives the token a key.
func (w *walk) put(token *softToken, k softKey) {
	token.remove(k.ID) // over one that is there, as a vendor's tool may
	token.add(k)
	w.connected[token.name][k.ID], w.ever[token.name][k.ID] = true, true
}

// becomes checks what must hold when a key becomes current that neither was before nor was opened under.
func (w *walk) becomes(t teller, id KeyID) {
	if id.IsZero() || w.named[id] || id == w.latest {
		return
	}
	w.named[id] = true
	for _, token := range w.tokens {
		activation := activationOfID(id)
		lacked := !w.ever[token.name][id]
		switch up := token.Generation() != 0; {
		case id.Emergency():
		case up && !w.connected[token.name][id]:
			t.Fatalf("%s became current while %s, which can be reached, lacks it", id, token.name)
		case !up && lacked && w.clock.Now().Sub(w.lastUp[token.name]).Abs() < walkPatience:
			t.Fatalf("%s became current while %s, which lacks it, was away for a moment", id, token.name)
		case !up && lacked && !activation.IsZero() && w.clock.Now().Before(activation.Add(walkGrace)):
			t.Fatalf("%s became current while %s was absent, before the end of the grace", id, token.name)
		}
	}
}

func (w *walk) aToken(t *rapid.T) *softToken { return rapid.SampledFrom(w.tokens).Draw(t, "token") }

func (w *walk) aKey(t *rapid.T) softKey {
	if len(w.keys) == 0 {
		t.Skip("no key yet")
	}
	return rapid.SampledFrom(w.keys).Draw(t, "key")
}

func (w *walk) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"move the clock": func(t *rapid.T) {
			w.clock.move(time.Duration(rapid.IntRange(-90, 90).Draw(t, "minutes")) * time.Minute)
		},
		"clock at 1970":  func(*rapid.T) { w.clock.move(time.UnixMilli(0).Sub(w.clock.Now())) },
		"clock is right": func(*rapid.T) { w.clock.move(noon.Sub(w.clock.Now())) },
		"make a key": func(t *rapid.T) {
			minutes := rapid.IntRange(-60, 60).Draw(t, "activates")
			k := keyAt(noon.Add(time.Duration(minutes)*time.Minute), fmt.Sprint(len(w.keys)))
			if rapid.IntRange(0, 4).Draw(t, "emergency") == 0 {
				k = emergencyKeyAt(noon.Add(time.Duration(minutes)*time.Minute), fmt.Sprint(len(w.keys)))
			}
			w.keys = append(w.keys, k)
			w.put(w.aToken(t), k)
		},
		"make a key elsewhere": func(t *rapid.T) {
			k := foreignKey(fmt.Sprint(len(w.keys)), fmt.Sprint(len(w.keys)))
			w.keys = append(w.keys, k)
			w.put(w.aToken(t), k)
		},
		"copy a key":    func(t *rapid.T) { w.put(w.aToken(t), w.aKey(t)) },
		"destroy a key": func(t *rapid.T) { w.aToken(t).remove(w.aKey(t).ID) },
		"go away":       func(t *rapid.T) { w.aToken(t).connect(0) },
		"come back":     func(t *rapid.T) { w.comeBack(w.aToken(t)) },
		"refresh":       func(t *rapid.T) { w.clock.move(time.Second); _ = w.ring.Refresh(t.Context()) },
		"exercise":      func(t *rapid.T) { w.exercise(t) },
		"open": func(t *rapid.T) {
			k := w.aKey(t)
			if w.sealed[k.ID] == nil {
				t.Skip("nothing is sealed under it")
			}
			w.open(t, k.ID)
		},
		"seal elsewhere": func(t *rapid.T) { // another node is ahead
			w.sealElsewhere(t, w.aKey(t))
		},
		"restart": func(*rapid.T) {
			w.start(w.ring.Floor())
		},
		"": func(t *rapid.T) { w.check(t) },
	}
}

func (w *walk) comeBack(token *softToken) {
	w.wakings++
	token.connect(w.wakings)
	w.connected[token.name] = map[KeyID]bool{}
	for id := range token.held {
		w.connected[token.name][id] = true
	}
}

func (w *walk) exercise(t teller) {
	_ = w.ring.Exercise(t.Context())
	w.becomes(t, w.ring.Floor()) // it may have become current on the way, before another token refused it
}

func (w *walk) sealElsewhere(t teller, k softKey) {
	envelope, err := SealDEK(t.Context(), newSoftToken("another node", k), AESGCM, k.ID, []byte("dek"))
	if err != nil {
		t.Fatalf("sealing elsewhere: %v", err)
	}
	w.sealed[k.ID] = envelope
}

func (w *walk) open(t teller, id KeyID) {
	dek, err := w.ring.Open(t.Context(), id.String(), w.sealed[id])
	switch {
	case err == nil && string(dek) != "dek":
		t.Fatalf("opening under %s gave %q", id, dek)
	case err == nil:
		w.latest = later(w.latest, id)
	case !errors.Is(err, ErrUnknownKey) && !errors.Is(err, ErrUnavailable):
		t.Fatalf("opening under %s: %v", id, err)
	}
}

func later(a, b KeyID) KeyID {
	if a.IsZero() || compareIDs(b, a) > 0 {
		return b
	}
	return a
}

// check is what holds at all times.
func (w *walk) check(t teller) {
	v := w.ring.Advance()
	defer func() {
		for _, token := range w.tokens {
			if token.Generation() != 0 {
				w.lastUp[token.name] = w.clock.Now()
			}
		}
	}()
	if floor := w.ring.Floor(); !w.latest.IsZero() && compareIDs(floor, w.latest) < 0 {
		t.Fatalf("the floor is %s and was %s", floor, w.latest)
	}
	served := slices.IndexFunc(v.Versions, func(v Version) bool { return v.State == Refused })
	if served < 0 {
		served = len(v.Versions)
	}
	if !slices.IsSortedFunc(v.Versions[:served], func(a, b Version) int { return compareIDs(a.ID, b.ID) }) {
		t.Fatalf("the versions are not in order")
	}
	current := 0
	for _, version := range v.Versions[:served] {
		if version.State == Current {
			current++
		}
	}
	if v.Current == nil {
		if v.Problem == nil || current != 0 {
			t.Fatalf("no current key, %d that say so, problem %v", current, v.Problem)
		}
		return
	}
	if current != 1 || v.Current.State != Current {
		t.Fatalf("%d versions say that they are current; the current one is %s", current, v.Current.State)
	}
	if !w.latest.IsZero() && compareIDs(v.Current.ID, w.latest) < 0 {
		t.Fatalf("%s is current after %s was", v.Current.ID, w.latest)
	}
	if v.Current.ID != w.latest && !w.named[v.Current.ID] && !v.Current.Works {
		t.Fatalf("%s became current and is not proven", v.Current.ID)
	}
	w.becomes(t, v.Current.ID)
	if v.Deferred != nil && compareIDs(v.Deferred.ID, v.Current.ID) <= 0 {
		t.Fatalf("%s is held back and not later than %s", v.Deferred.ID, v.Current.ID)
	}
	if again := w.ring.Advance(); idOf(again.Current) != v.Current.ID {
		t.Fatalf("asked again, it says %s, not %s", idOf(again.Current), v.Current.ID)
	}
	if envelope, err := w.ring.Seal(t.Context(), v.Current.ID, []byte("dek")); err == nil {
		w.sealed[v.Current.ID] = envelope
		w.latest = later(w.latest, v.Current.ID)
	}
}

// TestTheRingNeverGoesBack: whatever happens to clock, tokens and keys, no key older than one that was current and sealed,
// or was opened under, becomes current.
func TestTheRingNeverGoesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWalk()
		t.Repeat(w.actions())
	})
}

// TestTwoNodesAgree: two processes with the same keys, the same time and everything proven name the same current key.
func TestTwoNodesAgree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(anID(), 1, 6, func(id KeyID) KeyID { return id }).Draw(t, "keys")
		var one []Version
		for _, id := range ids {
			one = append(one, Version{Key: Key{ID: id, Activation: activationOfID(id)}, Works: true, Ready: true})
		}
		two := rapid.Permutation(one).Draw(t, "in another order")
		now := time.UnixMilli(rapid.SampledFrom([]int64{0, 9, 10, 11, 300}).Draw(t, "now"))
		a, b := choose(versionsOf(one), now, KeyID{}), choose(versionsOf(two), now, KeyID{})
		if idOf(a.current) != idOf(b.current) || (a.problem == nil) != (b.problem == nil) {
			t.Fatalf("one says %v (%v), the other %v (%v)", idOf(a.current), a.problem, idOf(b.current), b.problem)
		}
	})
}

// TestConcurrentUse is for the race detector: all methods at once, with a rotation and a token that goes and comes.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	const rounds = 100
	c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(rounds/2*time.Second), "next")
	a, b := newSoftToken("a", key, next), newSoftToken("b", key, next)
	r := newSoftRing(t, c, RingConfig{}, a, b)
	exercised(t, r)
	envelope, err := r.Seal(t.Context(), key.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	do := func(f func(i int)) {
		wg.Go(func() {
			for i := range rounds {
				f(i)
			}
		})
	}
	do(func(int) { c.move(time.Second) })
	do(func(i int) { a.connect(uint64(i % 3)) })
	do(func(int) { _ = r.Refresh(t.Context()) })
	do(func(int) {
		if err := r.Exercise(t.Context()); err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrNotProven) {
			t.Errorf("Exercise: %v", err)
		}
	})
	do(func(int) { _, _ = r.Open(t.Context(), "r/x00/0000000000000000", envelope) })
	for range 2 {
		do(func(int) {
			if dek, err := r.Open(t.Context(), key.ID.String(), envelope); err != nil || string(dek) != "dek" {
				t.Errorf("Open: %q, %v", dek, err)
			}
		})
		last := KeyID{}
		do(func(int) {
			v := r.Advance()
			if v.Current == nil {
				t.Errorf("no current key: %v", v.Problem)
				return
			}
			if !last.IsZero() && compareIDs(v.Current.ID, last) < 0 {
				t.Errorf("%s after %s", v.Current.ID, last)
			}
			last = v.Current.ID
			v.Versions[0].State = "scribbled" // a view is the caller's own
			if _, err := r.Seal(t.Context(), v.Current.ID, []byte("dek")); err != nil {
				t.Errorf("Seal: %v", err)
			}
		})
	}
	wg.Wait()
	a.connect(9)
	exercised(t, r)
	expect(t, r, next, softKey{}, nil)
}
