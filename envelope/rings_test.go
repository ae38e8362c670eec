package envelope

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// ofRing is a key of another ring than "r".
func ofRing(ring string, k softKey) softKey {
	k.ID.Ring = ring
	return k
}

// newReadRing makes a ring that is only read, and reads it.
func newReadRing(t *testing.T, c *clock, name string, profile Profile, token *softToken) *Ring {
	t.Helper()
	r := NewRing(RingConfig{Name: name, Profile: profile, Now: c.Now, ReadOnly: true}, softTokens{token})
	refreshed(t, r)
	return r
}

// Open goes to the ring that its key_id names, by the profile of that ring; Seal goes to the one ring that is
// written under.
func TestRingsByName(t *testing.T) {
	t.Parallel()
	c := newClock()
	mine, old := keyAt(noon.Add(-time.Hour), "mine"), ofRing("old", keyAt(noon.Add(-time.Hour), "old"))
	token, oldToken := newSoftToken("a", mine), newSoftToken("b", old)
	written := newSoftRing(t, c, RingConfig{}, token)
	read := newReadRing(t, c, "old", HMACKDF, oldToken)
	rings := NewRings(written, read)
	exercised(t, written)

	oldSealed, err := SealDEK(t.Context(), oldToken, HMACKDF, old.ID, []byte("dek of old"))
	if err != nil {
		t.Fatal(err)
	}
	if dek, err := rings.Open(t.Context(), old.ID.String(), oldSealed); err != nil || string(dek) != "dek of old" {
		t.Errorf("opening under the read ring: %q, %v", dek, err)
	}
	sealed, err := rings.Seal(t.Context(), mine.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	if dek, err := rings.Open(t.Context(), mine.ID.String(), sealed); err != nil || string(dek) != "dek" {
		t.Errorf("opening under the ring that is written under: %q, %v", dek, err)
	}
	// The same bytes under the same version of another ring are another key's.
	if _, err := rings.Open(t.Context(), ofRing("old", mine).ID.String(), sealed); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("opening under the wrong ring: %v", err)
	}
	if _, err := rings.Open(t.Context(), ofRing("third", mine).ID.String(), sealed); !errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), "the configuration has r, old") {
		t.Errorf("opening under a ring that is not there: %v", err)
	}
	if _, err := rings.Seal(t.Context(), old.ID, []byte("dek")); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("sealing under a read ring: %v", err)
	}

	oldToken.connect(0)
	if _, err := rings.Open(t.Context(), old.ID.String(), oldSealed); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "the read ring old") {
		t.Errorf("opening while the read ring is away: %v", err)
	}
	exercised(t, written) // and the other one does not notice
	expect(t, written, mine, softKey{}, nil)
}

// No key of a ring that is only read becomes current: not the newest, not at its activation, and not because it was opened under.
func TestReadOnlyHasNoCurrentKey(t *testing.T) {
	t.Parallel()
	c := newClock()
	due, next := ofRing("old", keyAt(noon.Add(-time.Hour), "due")), ofRing("old", keyAt(noon.Add(time.Hour), "next"))
	token := newSoftToken("a", due, next)
	r := newReadRing(t, c, "old", AESGCM, token)
	states := func(want ...State) {
		t.Helper()
		v := expect(t, r, softKey{}, softKey{}, nil)
		for i, state := range want {
			if v.Versions[i].State != state {
				t.Errorf("version %d is %s, want %s", i, v.Versions[i].State, state)
			}
		}
	}
	exercised(t, r)
	states(Retained, Pending)
	sealed, err := SealDEK(t.Context(), token, AESGCM, next.ID, []byte("dek")) // by a node that writes under the ring
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context(), next.ID.String(), sealed); err != nil {
		t.Error(err)
	}
	states(Retained, Pending)
	c.move(2 * time.Hour)
	exercised(t, r)
	states(Retained, Retained)
	token.remove(due.ID)
	token.remove(next.ID)
	refreshed(t, r)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrRingEmpty) {
		t.Errorf("an empty read ring: %v", err)
	}
}

// Each key of a read ring is proven, once in a token's generation; one that works nowhere is an error that names it.
func TestReadOnlyProvesEachKey(t *testing.T) {
	t.Parallel()
	c := newClock()
	one, two := ofRing("old", keyAt(noon.Add(-2*time.Hour), "one")), ofRing("old", keyAt(noon.Add(-time.Hour), "two"))
	token := newSoftToken("a", one, two)
	r := newReadRing(t, c, "old", AESGCM, token)
	for range 3 {
		exercised(t, r)
	}
	if n := token.used(one.ID) + token.used(two.ID); n != 4 {
		t.Errorf("%d operations, want a seal and an open for each key", n)
	}
	for _, v := range r.Advance().Versions {
		if !v.Works {
			t.Errorf("%s is not proven", v.ID)
		}
	}
	token.connect(0)
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrNotProven) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), one.ID.String()) {
		t.Errorf("with the token away: %v", err)
	}
	token.connect(2)
	exercised(t, r)
}

// A ring none of whose tokens may be used is unavailable, and does not call a key unknown.
func TestRingWithoutTokens(t *testing.T) {
	t.Parallel()
	r := NewRing(RingConfig{Name: "r", Profile: AESGCM, ReadOnly: true}, softTokens{})
	if err := r.Refresh(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Refresh: %v", err)
	}
	key := keyAt(noon, "key")
	sealed, err := SealDEK(t.Context(), newSoftToken("a", key), AESGCM, key.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context(), key.ID.String(), sealed); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknownKey) {
		t.Errorf("Open: %v", err)
	}
}

// Hold keys are derived by the ring that the key_id names; what is not served gives none.
func TestHoldKeysOfRings(t *testing.T) {
	t.Parallel()
	c := newClock()
	mine, old := keyAt(noon.Add(-time.Hour), "mine"), ofRing("old", keyAt(noon.Add(-time.Hour), "old"))
	token, oldToken := newSoftToken("a", mine), newSoftToken("b", old)
	rings := NewRings(newSoftRing(t, c, RingConfig{}, token), newReadRing(t, c, "old", AESGCM, oldToken))
	for _, of := range []struct {
		token Token
		id    KeyID
	}{{token, mine.ID}, {oldToken, old.ID}} {
		want, err := DeriveHoldKey(t.Context(), of.token, AESGCM, of.id, 5)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := rings.HoldKey(t.Context(), of.id, 5); err != nil || got != want {
			t.Errorf("%s: another hold key, %v", of.id, err)
		}
	}
	if _, err := rings.HoldKey(t.Context(), ofRing("old", mine).ID, 5); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("of a key that is not there: %v", err)
	}
	views := rings.Views()
	if len(views) != 2 || views[0].Ring != "r" || views[1].Ring != "old" || len(views[1].Versions) != 1 {
		t.Errorf("%+v", views)
	}
}
