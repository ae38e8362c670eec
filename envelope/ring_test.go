package envelope

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// expect checks which key is current, which is deferred, and the problem.
func expect(t *testing.T, r *Ring, current, deferred softKey, problem error) View {
	t.Helper()
	v := r.Advance()
	if idOf(v.Current) != current.ID || idOf(v.Deferred) != deferred.ID || !errors.Is(v.Problem, problem) {
		t.Fatalf("current %v, deferred %v, problem %v; want %v, %v, %v", idOf(v.Current), idOf(v.Deferred), v.Problem, current.ID, deferred.ID, problem)
	}
	return v
}

// exercised exercises the ring and fails the test when that fails.
func exercised(t *testing.T, r *Ring) {
	t.Helper()
	if err := r.Exercise(t.Context()); err != nil {
		t.Fatalf("Exercise: %v", err)
	}
}

func refreshed(t *testing.T, r *Ring) {
	t.Helper()
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatalf("Refresh: %v", err)
	}
}

func TestNothingIsReadYet(t *testing.T) {
	t.Parallel()
	token := newSoftToken("a", keyAt(noon, "key"))
	r := NewRing(RingConfig{Name: "r", Profile: AESGCM, Now: newClock().Now}, softTokens{token})
	if v := expect(t, r, softKey{}, softKey{}, ErrUnavailable); !v.LastRead.IsZero() || len(v.Versions) != 0 || token.readsSoFar() != 0 {
		t.Errorf("%+v after %d reads", v, token.readsSoFar())
	}
	token.connect(0)
	if err := r.Refresh(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Refresh: %v", err)
	}
	expect(t, r, softKey{}, softKey{}, ErrUnavailable)
	// After a restart Status names the key proven before, and Encrypt asks for it: it is not missing, nobody has looked.
	if _, err := r.Seal(t.Context(), keyAt(noon, "key").ID, make([]byte, 32)); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknownKey) {
		t.Errorf("Seal: %v", err)
	}
}

// TestNowIsTheDefault: a ring without a clock uses the machine's.
func TestNowIsTheDefault(t *testing.T) {
	t.Parallel()
	r := NewRing(RingConfig{Name: "r", Profile: AESGCM}, softTokens{newSoftToken("a")})
	refreshed(t, r)
	if age := time.Since(r.Advance().LastRead); age < 0 || age > time.Minute {
		t.Errorf("read %v ago", age)
	}
}

// TestOneTokenAway: what it was last seen to hold still counts, and the other serves.
func TestOneTokenAway(t *testing.T) {
	t.Parallel()
	c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(time.Hour), "next")
	a, b := newSoftToken("a", key), newSoftToken("b", key)
	r := newSoftRing(t, c, RingConfig{}, a, b)
	exercised(t, r)
	before := expect(t, r, key, softKey{}, nil)
	if !slices.Equal(before.Versions[0].Tokens, []string{"a", "b"}) || !before.Versions[0].Ready {
		t.Errorf("%+v", before.Versions[0])
	}

	a.connect(0)
	b.add(next)
	c.move(time.Minute)
	refreshed(t, r)
	v := expect(t, r, key, softKey{}, nil)
	if len(v.Versions) != 2 || !slices.Equal(v.Versions[0].Tokens, []string{"a", "b"}) || !slices.Equal(v.Versions[1].Tokens, []string{"b"}) {
		t.Errorf("%+v", v.Versions)
	}
	if !v.LastRead.Equal(c.Now()) {
		t.Errorf("last read %v, now %v", v.LastRead, c.Now())
	}

	b.connect(0)
	c.move(time.Minute)
	if err := r.Refresh(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Refresh: %v", err)
	}
	if v = r.Advance(); len(v.Versions) != 2 || idOf(v.Current) != key.ID || v.LastRead.Equal(c.Now()) {
		t.Errorf("with both away: %+v", v)
	}

	a.connect(2)
	a.remove(key.ID)
	refreshed(t, r)
	if v = r.Advance(); !slices.Equal(v.Versions[0].Tokens, []string{"b"}) {
		t.Errorf("after a came back without the key: %+v", v.Versions)
	}
}

// TestLaggingCopy: a version that has not reached every reachable token does not become current, and when it has, does.
func TestLaggingCopy(t *testing.T) {
	t.Parallel()
	c, old, next := newClock(), keyAt(noon.Add(-time.Hour), "old"), keyAt(noon.Add(time.Hour), "next")
	a, b := newSoftToken("a", old, next), newSoftToken("b", old)
	r := newSoftRing(t, c, RingConfig{}, a, b)
	exercised(t, r)
	c.move(2 * time.Hour)
	exercised(t, r)
	expect(t, r, old, next, nil)

	b.connect(0) // out of reach it does not hold the next key back, where there is no grace
	expect(t, r, next, softKey{}, nil)
	b.connect(2) // and once current, the key stays
	expect(t, r, next, softKey{}, nil)
	b.add(next)
	refreshed(t, r)
	exercised(t, r)
	if v := expect(t, r, next, softKey{}, nil); !v.Current.Ready {
		t.Error("the copy is there and proven, and the key is not ready")
	}
}

// TestRotation: pending, proven ahead, current at its instant, and the old one still opens.
func TestRotation(t *testing.T) {
	t.Parallel()
	c, old, next := newClock(), keyAt(noon.Add(-time.Hour), "old"), keyAt(noon.Add(15*time.Minute), "next")
	token := newSoftToken("a", old)
	r := newSoftRing(t, c, RingConfig{}, token)
	exercised(t, r)
	envelope, err := r.Seal(t.Context(), old.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	token.add(next)
	refreshed(t, r)
	exercised(t, r)
	v := expect(t, r, old, softKey{}, nil)
	if v.Versions[1].State != Pending || !v.Versions[1].Ready {
		t.Errorf("the next key: %+v", v.Versions[1])
	}
	c.move(15*time.Minute - time.Millisecond)
	expect(t, r, old, softKey{}, nil)
	c.move(time.Millisecond)
	if v = expect(t, r, next, softKey{}, nil); v.Versions[0].State != Retained {
		t.Errorf("the old key: %+v", v.Versions[0])
	}
	if dek, err := r.Open(t.Context(), old.ID.String(), envelope); err != nil || string(dek) != "dek" {
		t.Errorf("opening under the old key: %q, %v", dek, err)
	}
	c.move(-24 * time.Hour)
	expect(t, r, next, softKey{}, nil)
	if r.Floor() != next.ID {
		t.Errorf("floor %v", r.Floor())
	}
	exercised(t, r)
	token.remove(next.ID)
	refreshed(t, r)
	expect(t, r, softKey{}, softKey{}, ErrKeyMissing)
}

// TestClockAt1970: the earliest key stands in; when the clock is right again, the ring goes on and not back.
func TestClockAt1970(t *testing.T) {
	t.Parallel()
	c, first, second := newClock(), keyAt(noon.Add(-2*time.Hour), "first"), keyAt(noon.Add(-time.Hour), "second")
	c.now = time.UnixMilli(0)
	r := newSoftRing(t, c, RingConfig{}, newSoftToken("a", first, second))
	exercised(t, r)
	expect(t, r, first, softKey{}, nil)
	c.now = noon
	expect(t, r, second, softKey{}, nil)
	c.now = time.UnixMilli(0)
	expect(t, r, second, softKey{}, nil)
}

// TestFloorFromBefore: what an earlier process knew counts, for its own ring.
func TestFloorFromBefore(t *testing.T) {
	t.Parallel()
	old, next := keyAt(noon.Add(-time.Hour), "old"), keyAt(noon.Add(time.Hour), "next")
	r := newSoftRing(t, newClock(), RingConfig{Floor: next.ID}, newSoftToken("a", old, next))
	exercised(t, r)
	expect(t, r, next, softKey{}, nil)

	foreign := next.ID
	foreign.Ring = "another"
	r = newSoftRing(t, newClock(), RingConfig{Floor: foreign}, newSoftToken("a", old, next))
	exercised(t, r)
	expect(t, r, old, softKey{}, nil)
}

// TestDecryptActivates: another node has sealed under the key, so it is current there; this clock is behind.
func TestDecryptActivates(t *testing.T) {
	t.Parallel()
	old, next := keyAt(noon.Add(-time.Hour), "old"), keyAt(noon.Add(time.Minute), "next")
	token := newSoftToken("a", old, next)
	r := newSoftRing(t, newClock(), RingConfig{}, token)
	exercised(t, r)
	expect(t, r, old, softKey{}, nil)
	envelope, err := SealDEK(t.Context(), token, AESGCM, next.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(envelope)
	forged[len(forged)-1] ^= 1
	if _, err := r.Open(t.Context(), next.ID.String(), forged); !errors.Is(err, ErrUnauthentic) {
		t.Fatalf("opening what is forged: %v", err)
	}
	expect(t, r, old, softKey{}, nil) // only a Decrypt that succeeded counts
	if _, err := r.Open(t.Context(), next.ID.String(), envelope); err != nil {
		t.Fatal(err)
	}
	expect(t, r, next, softKey{}, nil)
	older, err := SealDEK(t.Context(), token, AESGCM, old.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context(), old.ID.String(), older); err != nil {
		t.Fatal(err)
	}
	expect(t, r, next, softKey{}, nil)
}

// TestRefusedByTheConfiguration: a key named in refuseKeys is as good as gone, which is what the rehearsal is for.
func TestRefusedByTheConfiguration(t *testing.T) {
	t.Parallel()
	old, now := keyAt(noon.Add(-2*time.Hour), "old"), keyAt(noon.Add(-time.Hour), "now")
	a, b := newSoftToken("a", old, now), newSoftToken("b", old, now)
	r := newSoftRing(t, newClock(), RingConfig{Refuse: []KeyID{old.ID}}, a, b)
	exercised(t, r)
	v := expect(t, r, now, softKey{}, nil)
	if len(v.Versions) != 3 || v.Versions[0].ID != now.ID || v.Versions[1].State != Refused || v.Versions[2].Refused == "" {
		t.Errorf("%+v", v.Versions)
	}
	if a.used(old.ID)+b.used(old.ID) != 0 {
		t.Error("a refused key was used")
	}
	r = newSoftRing(t, newClock(), RingConfig{Refuse: []KeyID{now.ID}, Floor: now.ID}, a)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrKeyMissing) {
		t.Errorf("Exercise with the current key refused: %v", err)
	}
	expect(t, r, softKey{}, softKey{}, ErrKeyMissing)
}

// TestRefusedByTheToken: a key that could have been planted is shown and never used, and does not make its ring.
func TestRefusedByTheToken(t *testing.T) {
	t.Parallel()
	planted := keyAt(noon.Add(-time.Minute), "planted")
	planted.ID.Fingerprint = [FingerprintSize]byte{} // as a token gives a key that it did not ask
	planted.Refused = "it is not CKA_PRIVATE"
	token := newSoftToken("a", planted)
	r := newSoftRing(t, newClock(), RingConfig{}, token)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrRingEmpty) {
		t.Errorf("Exercise: %v", err)
	}
	key := keyAt(noon.Add(-time.Hour), "key")
	token.add(key)
	refreshed(t, r)
	exercised(t, r)
	v := expect(t, r, key, softKey{}, nil)
	if len(v.Versions) != 2 || v.Versions[1].State != Refused || v.Versions[1].Refused != planted.Refused || token.used(planted.ID) != 0 {
		t.Errorf("%+v after %d uses", v.Versions, token.used(planted.ID))
	}
}

// TestAttributesOfAllCopies: an auditor is told the worst that is true of any copy.
func TestAttributesOfAllCopies(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	imported := key
	imported.Attributes = Attributes{Private: true, Sensitive: true, Extractable: true}
	for _, tokens := range [][]*softToken{
		{newSoftToken("a", key), newSoftToken("b", imported)},
		{newSoftToken("a", imported), newSoftToken("b", key)},
	} {
		v := newSoftRing(t, newClock(), RingConfig{}, tokens...).Advance()
		if len(v.Versions) != 1 || v.Versions[0].Attributes != imported.Attributes {
			t.Errorf("%+v", v.Versions)
		}
	}
}

// TestTwiceOnOneToken: the same key twice is an error on one token, and a copy on two.
func TestTwiceOnOneToken(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	r := newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a", key, key))
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("Exercise: %v", err)
	}
	expect(t, r, softKey{}, softKey{}, ErrAmbiguous)
	r = newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a", key), newSoftToken("b", key))
	exercised(t, r)
	expect(t, r, key, softKey{}, nil)
}
