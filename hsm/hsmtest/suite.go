package hsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// testRing: what is read of a ring does not change from one reading to the next, nor from one connection to another.
func testRing(t *testing.T, s Subject) {
	d := Start(t, s)
	id := d.Ready()
	first := d.mustKeys()
	for _, key := range first {
		t.Logf("%s: %+v %s", key.ID, key.Attributes, key.Refused)
	}
	if again := d.mustKeys(); !equalKeys(first, again) {
		t.Errorf("read twice: %+v and %+v", first, again)
	}
	if !strings.HasPrefix(id.String(), s.Common.Ring+"/") {
		t.Errorf("key_id %s does not name the ring", id)
	}
	d.Close()
	d = Start(t, s)
	if again := d.Ready(); again != id {
		t.Errorf("key_id %s after a new connection, %s before", again, id)
	}
	if again := d.mustKeys(); !equalKeys(first, again) {
		t.Errorf("another connection reads %+v, the first %+v", again, first)
	}
	d.Close()
}

// equalKeys compares without regard to order.
func equalKeys(a, b []envelope.Key) bool {
	texts := func(keys []envelope.Key) (out []string) {
		for _, k := range keys {
			out = append(out, k.ID.String()+string(k.CKAID)+k.Refused)
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(texts(a), texts(b))
}

func testSelfTest(t *testing.T, s Subject) {
	d := Start(t, s)
	defer d.Close()
	if err := envelope.SelfTest(t.Context(), d.Set, s.Common.Profile, d.Ready()); err != nil {
		t.Error(err)
	}
}

// testHold: the hold keys of a token are the same on each connection, and what is sealed under one opens with and without it.
func testHold(t *testing.T, s Subject) {
	d := Start(t, s)
	id := d.Ready()
	day, dek := envelope.DayOf(time.Now()), bytes.Repeat([]byte{7}, 32)
	derive := func(d *Driver, day envelope.Day) envelope.HoldKey {
		t.Helper()
		key, err := envelope.DeriveHoldKey(t.Context(), d.Set, s.Common.Profile, id, day)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key := derive(d, day)
	if key == derive(d, day+1) {
		t.Error("two days have one hold key")
	}
	sealed, err := envelope.SealHold(&key, id, day, dek)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Ring.Open(t.Context(), id.HoldString(), sealed); err != nil || !bytes.Equal(got, dek) {
		t.Errorf("with the HSM: %v", err)
	}
	for _, at := range []int{2, 6, len(sealed) - 1} {
		changed := bytes.Clone(sealed)
		changed[at] ^= 1
		if _, err := d.Ring.Open(t.Context(), id.HoldString(), changed); !errors.Is(err, envelope.ErrUnauthentic) && !errors.Is(err, envelope.ErrMalformed) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	d.Close()
	d = Start(t, s)
	defer d.Close()
	d.Ready()
	if derive(d, day) != key {
		t.Error("another connection derives another hold key")
	}
}

// testSizes: every length of DEK that an envelope can hold.
func testSizes(t *testing.T, s Subject) {
	d := Start(t, s)
	defer d.Close()
	id := d.Ready()
	dek := make([]byte, envelope.MaxDEK)
	_, _ = rand.Read(dek)
	for size := 1; size <= envelope.MaxDEK; size++ {
		wrapped, err := d.Ring.Seal(t.Context(), id, dek[:size])
		if err != nil {
			t.Fatalf("sealing %d bytes: %v", size, err)
		}
		opened, err := d.Ring.Open(t.Context(), id.String(), wrapped)
		if err != nil || !bytes.Equal(opened, dek[:size]) {
			t.Fatalf("opening %d bytes: %v", size, err)
		}
	}
	for _, size := range []int{0, envelope.MaxDEK + 1} {
		if _, err := d.Ring.Seal(t.Context(), id, make([]byte, size)); !errors.Is(err, envelope.ErrDEKSize) {
			t.Errorf("sealing %d bytes: %v", size, err)
		}
	}
}

// testTampering: no change to an envelope goes unnoticed, none is taken for a failure of the token.
func testTampering(t *testing.T, s Subject) {
	d := Start(t, s)
	defer d.Close()
	id := d.Ready()
	wrapped, err := d.Ring.Seal(t.Context(), id, bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(envelopeBytes []byte, what string, at int) {
		_, err := d.Ring.Open(t.Context(), id.String(), envelopeBytes)
		if !errors.Is(err, envelope.ErrUnauthentic) && !errors.Is(err, envelope.ErrMalformed) {
			t.Errorf("%s %d: %v", what, at, err)
		}
	}
	for i := range wrapped {
		for _, bit := range []byte{0x01, 0x80} {
			changed := bytes.Clone(wrapped)
			changed[i] ^= bit
			refused(changed, "changed byte", i)
		}
		refused(wrapped[:i], "cut at", i)
	}
	refused(append(bytes.Clone(wrapped), 0), "one byte more than", len(wrapped))
	if generation := d.Set.Generation(); generation != 1 {
		t.Errorf("tampering led to generation %d", generation)
	}
	if n := d.Calls.Of("C_Initialize"); n != 1 {
		t.Errorf("tampering led to %d calls of C_Initialize", n)
	}
	if n := d.Calls.Of("C_Login"); n > 1 {
		t.Errorf("tampering led to %d logins", n)
	}
	if _, err := d.Ring.Open(t.Context(), id.String(), wrapped); err != nil {
		t.Errorf("the envelope itself: %v", err)
	}
}

// testUnknownKey: a key is found by its key_id alone.
func testUnknownKey(t *testing.T, s Subject) {
	d := Start(t, s)
	defer d.Close()
	id := d.Ready()
	wrapped, err := d.Ring.Seal(t.Context(), id, []byte("a DEK"))
	if err != nil {
		t.Fatal(err)
	}
	otherMaterial, otherRing, otherVersion := id, id, id
	otherMaterial.Fingerprint[0] ^= 1
	otherRing.Ring += "2"
	otherVersion.Version = "x00"
	for _, other := range []envelope.KeyID{otherMaterial, otherRing, otherVersion} {
		if _, err := d.Ring.Open(t.Context(), other.String(), wrapped); !errors.Is(err, envelope.ErrUnknownKey) {
			t.Errorf("%s: %v", other, err)
		}
		if _, err := d.Set.MAC(t.Context(), other, []byte("x")); !errors.Is(err, envelope.ErrUnknownKey) {
			t.Errorf("%s past the ring: %v", other, err)
		}
	}
}

// testConcurrency: 16 callers on few sessions, of which there are never more than configured and one for login.
func testConcurrency(t *testing.T, s Subject) {
	d := Start(t, s)
	defer d.Close()
	id := d.Ready()
	var callers sync.WaitGroup
	for caller := range 16 {
		callers.Go(func() {
			dek := bytes.Repeat([]byte{byte(caller + 1)}, 32)
			for range 10 {
				wrapped, err := d.Ring.Seal(t.Context(), id, dek)
				if err != nil {
					t.Errorf("caller %d: %v", caller, err)
					return
				}
				opened, err := d.Ring.Open(t.Context(), id.String(), wrapped)
				if err != nil || !bytes.Equal(opened, dek) {
					t.Errorf("caller %d: %x, %v", caller, opened, err)
					return
				}
			}
		})
	}
	callers.Wait()
	if most := d.Calls.MostSessions(); most > s.Token.MaxSessions+1 {
		t.Errorf("%d sessions were open at once, %d working ones and one for login are allowed", most, s.Token.MaxSessions)
	}
	if n := d.Calls.Of("C_Initialize"); n != 1 {
		t.Errorf("initialised %d times", n)
	}
}

// testDeadlines: a caller whose time is up is told so at once, and harms nobody.
func testDeadlines(t *testing.T, s Subject) {
	d := Start(t, s)
	defer d.Close()
	id := d.Ready()
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if err := d.RoundTrip(past, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline in the past: %v", err)
	}
	for micros := range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(micros*20)*time.Microsecond)
		start := time.Now()
		if err := d.RoundTrip(ctx, id); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deadline of %d µs: %v", micros*20, err)
		}
		if took := time.Since(start); took > s.Token.CallTimeout {
			t.Errorf("deadline of %d µs was answered after %s", micros*20, took)
		}
		cancel()
	}
	if err := d.RoundTrip(t.Context(), id); err != nil {
		t.Errorf("after the abandoned calls: %v", err)
	}
}

// testLiveRing is LiveRing, where it can be had: a key that another process makes is served without a restart: by the next
// reading of the ring, or, where the
// module reads its keys once, when another plugin has used it.
func testLiveRing(t *testing.T, s Subject) {
	switch {
	case s.ForeignKeys:
		t.Skip("no key is to be made on this token")
	case s.OneProcess:
		t.Skip("no other plugin can use this token at once")
	}
	LiveRing(t, s)
}

// LiveRing is that part of Run.
func LiveRing(t *testing.T, s Subject) {
	t.Helper()
	d := Start(t, s)
	before := d.Ready()
	added := s.AddKey(t, time.Now().Add(-time.Second))
	if err := d.Ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.BlindToNewKeys {
		if id := d.Ready(); id != before {
			t.Errorf("the module does show new keys: %s", id)
		}
		d.openFromElsewhere(s)
	}
	id := d.Ready()
	if id.Version != string(added) {
		t.Errorf("current is %s, the key added is %s", id, added)
	}
	for _, each := range []envelope.KeyID{before, id} {
		if err := d.RoundTrip(t.Context(), each); err != nil {
			t.Errorf("%s: %v", each, err)
		}
	}
	d.Close()
}

// openFromElsewhere has d open what another plugin sealed under a key that the module of d does not show yet.
func (d *Driver) openFromElsewhere(s Subject) {
	d.t.Helper()
	other := Start(d.t, s)
	id := other.Ready()
	wrapped, err := other.Ring.Seal(d.t.Context(), id, []byte("a DEK"))
	other.Close()
	if err != nil {
		d.t.Fatal(err)
	}
	dek, err := d.Ring.Open(d.t.Context(), id.String(), wrapped)
	if err != nil || string(dek) != "a DEK" {
		d.t.Fatalf("the key of another plugin: %v", err)
	}
}

// testOtherProfile: a key that does not fit the configured profile is shown and not served.
func testOtherProfile(t *testing.T, s Subject) {
	if s.Common.Profile.UsesAES() {
		s.Common.Profile = envelope.HMACKDF
	} else {
		s.Common.Profile = envelope.AESGCM
	}
	d := Start(t, s)
	defer d.Close()
	d.mustConnect()
	if err := d.Ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	view := d.Ring.Advance()
	if view.Current != nil || !errors.Is(view.Problem, envelope.ErrRingEmpty) {
		t.Errorf("under the profile %s current is %v, problem %v", s.Common.Profile, view.Current, view.Problem)
	}
	for _, v := range view.Versions {
		if v.Refused == "" {
			t.Errorf("%s is served under the profile %s", v.ID, s.Common.Profile)
		}
	}
	if len(view.Versions) == 0 {
		t.Error("no key is shown")
	}
}
