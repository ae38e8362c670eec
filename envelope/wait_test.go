package envelope

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// patient is a ring as serve makes it: a day of grace, and five minutes until a token counts as absent.
func patient(floor KeyID) RingConfig {
	return RingConfig{Floor: floor, Grace: 24 * time.Hour, AbsentAfter: 5 * time.Minute}
}

// TestATokenThatIsAwayForAMoment: a key that a token lacks does not become current because that token is away for five
// seconds, whether the grace is over or not.
func TestATokenThatIsAwayForAMoment(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{time.Minute, 48 * time.Hour} {
		c, old, next := newClock(), keyAt(noon.Add(-48*time.Hour), "old"), keyAt(noon.Add(time.Hour), "next")
		a, b := newSoftToken("a", old, next), newSoftToken("b", old)
		r := newSoftRing(t, c, patient(KeyID{}), a, b)
		exercised(t, r)
		c.move(time.Hour + late)
		exercised(t, r)
		v := expect(t, r, old, next, nil)
		if why := v.Deferred.WhyHeldBack(); why != "b does not hold it" || !v.Deferred.HeldUntil().IsZero() {
			t.Errorf("%s late: %s, until %s", late, why, v.Deferred.HeldUntil())
		}
		b.connect(0)
		c.move(5 * time.Second)
		expect(t, r, old, next, nil)
		b.connect(2)
		exercised(t, r)
		expect(t, r, old, next, nil)
		b.add(next)
		refreshed(t, r)
		exercised(t, r)
		expect(t, r, next, softKey{}, nil)
	}
}

// TestARestartWhileATokenIsLate: the process that begins knows nothing of a token that connects later than the other.
func TestARestartWhileATokenIsLate(t *testing.T) {
	t.Parallel()
	old, next := keyAt(noon.Add(-72*time.Hour), "old"), keyAt(noon.Add(-48*time.Hour), "next")
	c, a, b := newClock(), newSoftToken("a", old, next), newSoftToken("b", old)
	b.connect(0)
	r := newSoftRing(t, c, patient(old.ID), a, b)
	exercised(t, r)
	expect(t, r, old, next, nil)
	c.move(75 * time.Second) // some modules take that long to be initialised
	b.connect(1)
	refreshed(t, r)
	exercised(t, r)
	expect(t, r, old, next, nil)
}

// TestAnAbsentTokenIsWaitedFor until the end of the grace, and the key that is current then says who lacks it.
func TestAnAbsentTokenIsWaitedFor(t *testing.T) {
	t.Parallel()
	old, next := keyAt(noon.Add(-72*time.Hour), "old"), keyAt(noon.Add(time.Hour), "next")
	c, a, b := newClock(), newSoftToken("a", old, next), newSoftToken("b", old)
	b.connect(0)
	r := newSoftRing(t, c, patient(KeyID{}), a, b)
	// For five minutes nobody knows whether b is absent, and with no key from before there is none to go on with.
	if err := r.Exercise(t.Context()); !errors.Is(err, ErrNotProven) || !strings.Contains(err.Error(), "it has not been proven on b yet") {
		t.Errorf("Exercise: %v", err)
	}
	expect(t, r, softKey{}, old, ErrNotProven)
	c.move(2 * time.Hour)
	exercised(t, r)
	v := expect(t, r, old, next, nil)
	until := next.Activation.Add(24 * time.Hour)
	if why := v.Deferred.WhyHeldBack(); !strings.Contains(why, "b is out of reach and is waited for until 2026-01-02T13:00:00Z") || !v.Deferred.HeldUntil().Equal(until) {
		t.Errorf("%s; until %s, want %s", why, v.Deferred.HeldUntil(), until)
	}
	c.move(until.Add(-time.Millisecond).Sub(c.Now()))
	expect(t, r, old, next, nil)
	c.move(time.Millisecond)
	if v = expect(t, r, next, softKey{}, nil); v.Missing() != nil {
		t.Errorf("nobody knows whether b lacks it, and %v are said to", v.Missing())
	}
	b.connect(1) // it comes back without the key: the key stays, and that is told for as long as it lasts
	refreshed(t, r)
	exercised(t, r)
	if v = expect(t, r, next, softKey{}, nil); !slices.Equal(v.Missing(), []string{"b"}) {
		t.Errorf("missing on %v", v.Missing())
	}
	b.connect(0)
	c.move(time.Hour)
	if v = expect(t, r, next, softKey{}, nil); !slices.Equal(v.Missing(), []string{"b"}) {
		t.Errorf("b is away again, and the key is missing on %v", v.Missing())
	}
	b.connect(2)
	b.add(next)
	refreshed(t, r)
	exercised(t, r)
	if v = expect(t, r, next, softKey{}, nil); v.Missing() != nil || !v.Current.Ready {
		t.Errorf("copied, and missing on %v", v.Missing())
	}
}

// TestAConfiguredTokenThatIsNoMember: doctor leaves out tokens that it may not log in to; they are waited for all the same.
func TestAConfiguredTokenThatIsNoMember(t *testing.T) {
	t.Parallel()
	old, next := keyAt(noon.Add(-72*time.Hour), "old"), keyAt(noon.Add(-time.Hour), "next")
	r := newSoftRing(t, newClock(), RingConfig{Grace: 24 * time.Hour, Tokens: []string{"a", "b"}}, newSoftToken("a", old, next))
	exercised(t, r)
	expect(t, r, old, next, nil)
}

// TestACopyThatCannotBeUsed defers as one that is missing does, and is told otherwise.
func TestACopyThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	old, next := keyAt(noon.Add(-72*time.Hour), "old"), keyAt(noon.Add(-48*time.Hour), "next")
	a, b := newSoftToken("a", old, next), newSoftToken("b", old, next)
	b.held[next.ID] = nil
	r := newSoftRing(t, newClock(), patient(KeyID{}), a, b)
	exercised(t, r)
	if v := expect(t, r, old, next, nil); v.Deferred.WhyHeldBack() != "b holds it and cannot use it" {
		t.Error(v.Deferred.WhyHeldBack())
	}
}

// story is what has happened to one token before the question which key is current.
type story struct {
	name   string
	before func(*softToken, softKey) // before the ring is read first
	after  func(*softToken, softKey) // when it has been read and exercised
	proven bool                      // the key has been proven, or had been when the token was last there
	absent bool
	seen   bool // it could be reached once
}

func stories() []story {
	with := func(t *softToken, k softKey) { t.add(k) }
	nothing := func(*softToken, softKey) {}
	away := func(t *softToken, _ softKey) { t.connect(0) }
	all := []story{
		{name: "has it", before: with, after: nothing, proven: true},
		{name: "lacks it", before: nothing, after: nothing},
		{name: "cannot use it", before: func(t *softToken, k softKey) { t.add(k); t.held[k.ID] = nil }, after: nothing},
		{name: "was never there", before: away, after: nothing, absent: true},
		{name: "had it, and is away", before: with, after: away, proven: true, absent: true},
		{name: "lacked it, and is away", before: nothing, after: away, absent: true},
		{name: "had it, and has just been connected again", before: with, after: func(t *softToken, _ softKey) { t.connect(2) }},
		{name: "had it, and lost it", before: with, after: func(t *softToken, k softKey) { t.remove(k.ID) }},
	}
	for i := range all {
		all[i].seen = all[i].name != "was never there"
	}
	return all
}

// TestEveryWorldOfTwoTokens: all that two tokens can have been through, at all times that matter, with an ordinary and an
// emergency key. The sentences of FORMAT.md, section 6, say what is right.
func TestEveryWorldOfTwoTokens(t *testing.T) {
	t.Parallel()
	const grace = grace24
	old := keyAt(noon.Add(-72*time.Hour), "old")
	for _, next := range []softKey{keyAt(noon.Add(time.Hour), "next"), emergencyKeyAt(noon.Add(time.Hour), "next")} {
		for _, now := range []time.Duration{time.Hour - time.Millisecond, time.Hour, time.Hour + grace - time.Millisecond, time.Hour + grace} {
			for _, one := range stories() {
				for _, two := range stories() {
					if !one.seen && !two.seen {
						continue // nothing was ever read
					}
					name := fmt.Sprintf("%v, %s, a %s, b %s", next.ID.Emergency(), now, one.name, two.name)
					if got, want := chosenIn(t, name, old, next, now, one, two), mayBe(next, now, grace, one, two); got != want {
						t.Errorf("emergency %s: the key is current: %v, want %v", name, got, want)
					}
				}
			}
		}
	}
}

// mayBe is whether next is current by what FORMAT.md says.
func mayBe(next softKey, now, grace time.Duration, both ...story) bool {
	works, waits := false, false
	for _, s := range both {
		works = works || s.proven && !s.absent
		waits = waits || !s.proven && (!s.absent || now < time.Hour+grace)
	}
	return now >= time.Hour && works && (!waits || next.ID.Emergency())
}

// chosenIn lives through the stories, and reports whether next is current in the end.
func chosenIn(t *testing.T, name string, old, next softKey, now time.Duration, one, two story) bool {
	t.Helper()
	c, a, b := newClock(), newSoftToken("a", old), newSoftToken("b", old)
	one.before(a, next)
	two.before(b, next)
	r := NewRing(RingConfig{Name: "r", Profile: AESGCM, Now: c.Now, Floor: old.ID, Grace: grace24, AbsentAfter: 5 * time.Minute}, softTokens{a, b})
	_ = r.Refresh(t.Context()) // none may be there
	_ = r.Exercise(t.Context())
	r.Advance()
	one.after(a, next)
	two.after(b, next)
	c.move(now)
	_ = r.Refresh(t.Context())
	v := r.Advance()
	if v.Current == nil {
		t.Fatalf("%s: no current key: %v", name, v.Problem)
	}
	is := v.Current.ID == next.ID
	if deferred := v.Deferred != nil; !is && now >= time.Hour && len(r.versions) > 1 && !deferred {
		t.Errorf("%s: the key is due, and neither current nor deferred", name)
	}
	if is && r.Advance().Current.ID != next.ID {
		t.Errorf("%s: it is current once", name)
	}
	return is
}

const grace24 = 24 * time.Hour

// TestAnEmergencyKeyIsMarked, and an ordinary one never is.
func TestAnEmergencyKeyIsMarked(t *testing.T) {
	t.Parallel()
	at := noon.Add(123 * time.Millisecond)
	id, err := NewEmergencyCKAID(at)
	if err != nil {
		t.Fatal(err)
	}
	version, err := VersionOf(id)
	if got, ok := ActivationOf(id); err != nil || !ok || !got.Equal(at) || !(KeyID{Version: version}).Emergency() {
		t.Errorf("%s: %v, %v, %v", id, got, ok, err)
	}
	ordinary, err := NewCKAID(at)
	if err != nil || (KeyID{Version: string(ordinary)}).Emergency() {
		t.Errorf("%s: %v", ordinary, err)
	}
	if again, _ := NewEmergencyCKAID(at); string(again) == string(id) {
		t.Error("two emergency keys have one CKA_ID")
	}
	for _, version := range []string{"", "x", "x" + strings.Repeat("ee", 42), version[:len(version)-1] + "_"} {
		if (KeyID{Version: version}).Emergency() {
			t.Errorf("%q is an emergency key", version)
		}
	}
}
