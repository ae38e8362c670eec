package envelope

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	other := keyAt(noon.Add(-2*time.Hour), "other")
	token := newSoftToken("a", key, other)
	r := newSoftRing(t, newClock(), RingConfig{}, token)
	envelope, err := r.Seal(t.Context(), key.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	reads, uses := token.readsSoFar(), token.used(key.ID)
	foreign := key.ID
	foreign.Ring = "another"
	for _, test := range []struct {
		name, keyID string
		envelope    []byte
		want        error
	}{
		{"no envelope", key.ID.String(), nil, ErrMalformed},
		{"no envelope and no key_id", "", nil, ErrMalformed},
		{"no key_id", "", envelope, ErrUnknownKey},
		{"not a key_id of ours", "projects/p/cryptoKeys/k", envelope, ErrUnknownKey},
		{"another ring's", foreign.String(), envelope, ErrUnknownKey},
	} {
		if dek, err := r.Open(t.Context(), test.keyID, test.envelope); !errors.Is(err, test.want) || dek != nil {
			t.Errorf("%s: %q, %v; want %v", test.name, dek, err, test.want)
		}
	}
	if token.readsSoFar() != reads || token.used(key.ID) != uses || token.used(foreign) != 0 {
		t.Error("the HSM was asked all the same")
	}
	// By its key_id and never by trial: asked for under the other key, it does not open, and the right one is not tried.
	if dek, err := r.Open(t.Context(), other.ID.String(), envelope); !errors.Is(err, ErrUnauthentic) || token.used(key.ID) != uses || token.used(other.ID) != 1 {
		t.Errorf("under another key of the ring: %q, %v", dek, err)
	}
}

func TestSealUnderAKeyThatIsGone(t *testing.T) {
	t.Parallel()
	key, gone := keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(-2*time.Hour), "gone")
	r := newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a", key))
	if b, err := r.Seal(t.Context(), gone.ID, []byte("dek")); !errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), key.ID.String()) {
		t.Errorf("%x, %v", b, err)
	}
	if _, err := r.Seal(t.Context(), key.ID, nil); !errors.Is(err, ErrDEKSize) {
		t.Errorf("an empty DEK: %v", err)
	}
}

// TestNewKeyIsFoundOnDemand: a node that has not re-read the ring yet opens what another sealed under a new key.
func TestNewKeyIsFoundOnDemand(t *testing.T) {
	t.Parallel()
	c, key, next := newClock(), keyAt(noon.Add(-time.Hour), "key"), keyAt(noon.Add(-time.Minute), "next")
	token := newSoftToken("a", key)
	r := newSoftRing(t, c, RingConfig{}, token)
	token.add(next)
	envelope, err := SealDEK(t.Context(), token, AESGCM, next.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context(), next.ID.String(), envelope); !errors.Is(err, ErrUnknownKey) || token.readsSoFar() != 1 {
		t.Errorf("within a second of the last read: %v after %d reads; want ErrUnknownKey after 1", err, token.readsSoFar())
	}
	c.move(onDemandInterval)
	if dek, err := r.Open(t.Context(), next.ID.String(), envelope); err != nil || string(dek) != "dek" || token.readsSoFar() != 2 {
		t.Errorf("%q, %v after %d reads", dek, err, token.readsSoFar())
	}
}

// TestMadeUpKeyIDsAreNoLoad: one re-read a second, however many ask how often, and whether it succeeds or not.
func TestMadeUpKeyIDsAreNoLoad(t *testing.T) {
	t.Parallel()
	c, key := newClock(), keyAt(noon.Add(-time.Hour), "key")
	token := newSoftToken("a", key)
	r := newSoftRing(t, c, RingConfig{}, token)
	envelope, err := r.Seal(t.Context(), key.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, n int, want error) {
		t.Helper()
		for i := range n {
			id := KeyID{Ring: "r", Version: fmt.Sprintf("x%04x", i)}
			if _, err := r.Open(ctx, id.String(), envelope); !errors.Is(err, want) {
				t.Fatalf("%s: %v, want %v", id, err, want)
			}
		}
	}
	c.move(time.Minute)
	ask(t.Context(), 100, ErrUnknownKey)
	if n := token.readsSoFar(); n != 2 {
		t.Errorf("%d reads, want 2", n)
	}
	c.move(-time.Hour) // a clock that jumps back must not stop the re-reads
	ask(t.Context(), 100, ErrUnknownKey)
	if n := token.readsSoFar(); n != 3 {
		t.Errorf("%d reads, want 3", n)
	}
	c.move(time.Minute)
	token.failWith(ErrUnavailable) // a ring that cannot be read does not say that the key is unknown
	ask(t.Context(), 100, ErrUnavailable)
	if n := token.readsSoFar(); n != 4 {
		t.Errorf("%d reads, want 4: those that fail count too", n)
	}
	token.failWith(nil)
	c.move(onDemandInterval)
	ask(t.Context(), 100, ErrUnknownKey)
	if n := token.readsSoFar(); n != 5 {
		t.Errorf("%d reads, want 5", n)
	}
	// A caller who gives up must not speak for those who come after.
	c.move(time.Minute)
	cancelled, cancel := context.WithCancel(t.Context())
	token.onKeys = cancel
	ask(cancelled, 1, context.Canceled)
	token.onKeys = nil
	ask(cancelled, 1, context.Canceled) // and asks for nothing any more
	if n := token.readsSoFar(); n != 6 {
		t.Errorf("%d reads, want 6", n)
	}
	ask(t.Context(), 100, ErrUnknownKey)
	if n := token.readsSoFar(); n != 7 {
		t.Errorf("%d reads, want 7", n)
	}
}

// TestNeverReadIsNotUnknown: before the first read only the HSM's error can be given.
func TestNeverReadIsNotUnknown(t *testing.T) {
	t.Parallel()
	c, key := newClock(), keyAt(noon.Add(-time.Hour), "key")
	token := newSoftToken("a", key)
	envelope, err := SealDEK(t.Context(), token, AESGCM, key.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	token.connect(0)
	r := NewRing(RingConfig{Name: "r", Profile: AESGCM, Now: c.Now}, softTokens{token})
	if _, err := r.Open(t.Context(), key.ID.String(), envelope); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknownKey) {
		t.Errorf("with the HSM away: %v", err)
	}
	token.connect(1)
	c.move(onDemandInterval)
	if dek, err := r.Open(t.Context(), key.ID.String(), envelope); err != nil || string(dek) != "dek" {
		t.Errorf("with the HSM back: %q, %v", dek, err)
	}
}

// TestUnknownKeySaysWhatThereIs: the error that an operator reads at three in the morning.
func TestUnknownKeySaysWhatThereIs(t *testing.T) {
	t.Parallel()
	made, replaced := duplicates(noon.Add(-time.Hour))
	ask := func(r *Ring, id KeyID) string {
		_, err := r.Open(t.Context(), id.String(), sized(1, byte(AESGCM), 64))
		if !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: %v", id, err)
			return ""
		}
		return err.Error()
	}
	missing := keyAt(noon, "missing").ID

	if text := ask(newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a")), missing); !strings.Contains(text, missing.String()) || !strings.Contains(text, "ring r is empty") {
		t.Error(text)
	}
	if text := ask(newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a", made)), replaced.ID); !strings.Contains(text, "other key material: "+made.ID.String()) || !strings.Contains(text, replaced.ID.String()) {
		t.Error(text)
	}
	if text := ask(newSoftRing(t, newClock(), RingConfig{Refuse: []KeyID{made.ID}}, newSoftToken("a", made)), made.ID); !strings.Contains(text, "is refused: refuseKeys") {
		t.Error(text)
	}

	var keys []softKey
	for i := range 8 {
		keys = append(keys, keyAt(noon.Add(time.Duration(-i)*time.Hour), fmt.Sprint(i)))
	}
	text := ask(newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a", keys...)), missing)
	for _, k := range keys {
		if !strings.Contains(text, k.ID.String()) {
			t.Errorf("it does not name %s: %s", k.ID, text)
		}
	}
	if strings.Contains(text, "more") || strings.Index(text, keys[0].ID.String()) > strings.Index(text, keys[7].ID.String()) {
		t.Errorf("not all eight, newest first: %s", text)
	}
	keys = append(keys, keyAt(noon.Add(-100*time.Hour), "oldest"), keyAt(noon.Add(-101*time.Hour), "older still"))
	if text := ask(newSoftRing(t, newClock(), RingConfig{}, newSoftToken("a", keys...)), missing); !strings.HasSuffix(text, " and 2 more") || strings.Contains(text, keys[8].ID.String()) {
		t.Error(text)
	}
}

// TestOpenNeedsOneTokenOnly: the first that is healthy and holds the key.
func TestOpenNeedsOneTokenOnly(t *testing.T) {
	t.Parallel()
	key := keyAt(noon.Add(-time.Hour), "key")
	a, b, copied := newSoftToken("a", key), newSoftToken("b"), newSoftToken("c", key)
	r := newSoftRing(t, newClock(), RingConfig{}, a, b, copied)
	envelope, err := r.Seal(t.Context(), key.ID, []byte("dek"))
	if err != nil {
		t.Fatal(err)
	}
	a.connect(0)
	if dek, err := r.Open(t.Context(), key.ID.String(), envelope); err != nil || string(dek) != "dek" {
		t.Errorf("%q, %v", dek, err)
	}
	copied.connect(0)
	if _, err := r.Open(t.Context(), key.ID.String(), envelope); !errors.Is(err, ErrUnavailable) {
		t.Errorf("all that hold it away: %v", err)
	}
}
