package envelope

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// versionsOf puts keys in order.
func versionsOf(keys []Version) []Version {
	return slices.SortedFunc(slices.Values(keys), func(a, b Version) int { return compareIDs(a.ID, b.ID) })
}

func ready(k softKey) Version    { return Version{Key: k.Key, Works: true, Ready: true} }
func notReady(k softKey) Version { return Version{Key: k.Key} }

func twice(k softKey) Version { return Version{Key: k.Key, Works: true, Ready: true, duplicated: true} }

// chooseTest is one sentence of the rules about which key is current. The zero softKey stands for none.
type chooseTest struct {
	name              string
	keys              []Version
	floor             softKey
	current, deferred softKey
	problem           error
	says              string // the problem names it
}

// duplicates are two keys of one CKA_ID with different material; the first comes first in the order.
func duplicates(at time.Time) (first, second softKey) {
	random := [idRandom]byte{7}
	id, err := ckaID(at, random)
	if err != nil {
		panic(err)
	}
	first, second = newSoftKey(AESGCM, "r", id, "one"), newSoftKey(AESGCM, "r", id, "two")
	if compareIDs(first.ID, second.ID) > 0 {
		first, second = second, first
	}
	return first, second
}

func chooseTests() []chooseTest {
	var none softKey
	older, old, next := keyAt(noon.Add(-2*time.Hour), "older"), keyAt(noon.Add(-time.Hour), "old"), keyAt(noon.Add(time.Hour), "next")
	later := keyAt(noon.Add(2*time.Hour), "later")
	now := keyAt(noon, "now")
	made, other := foreignKey("a", "made elsewhere"), foreignKey("b", "other")
	one, two := duplicates(noon.Add(-time.Minute))
	tests := []chooseTest{
		{name: "no key", problem: ErrRingEmpty},
		{name: "one key", keys: []Version{ready(old)}, current: old},
		{name: "the latest that is due", keys: []Version{ready(older), ready(old), ready(next)}, current: old},
		{name: "due to the millisecond", keys: []Version{ready(old), ready(now)}, current: now},
		{name: "not yet proven: its predecessor stays", keys: []Version{ready(older), notReady(old)}, current: older, deferred: old},
		{name: "two not yet proven: the latest is what is waited for", keys: []Version{ready(older), notReady(old), notReady(now)}, current: older, deferred: now},
		{name: "nothing proven", keys: []Version{notReady(older), notReady(old)}, deferred: old, problem: ErrNotProven},
		{name: "a pending key that is not proven is not deferred", keys: []Version{ready(old), notReady(next)}, current: old},
		{name: "all in the future: the earliest", keys: []Version{ready(next), ready(later)}, current: next},
		{name: "all in the future, and not proven", keys: []Version{notReady(next), ready(later)}, deferred: next, problem: ErrNotProven},
		{name: "only one future key", keys: []Version{ready(later)}, current: later},

		{name: "made elsewhere: always active", keys: []Version{ready(made)}, current: made},
		{name: "made elsewhere and succeeded by ours", keys: []Version{ready(made), ready(old)}, current: old},
		{name: "made elsewhere, ours is pending", keys: []Version{ready(made), ready(next)}, current: made},
		{name: "made elsewhere twice", keys: []Version{ready(made), ready(other)}, problem: ErrAmbiguous, says: made.ID.String()},
		{name: "made elsewhere twice, and succeeded by ours", keys: []Version{ready(made), ready(other), ready(old)}, current: old},
		{name: "made elsewhere twice, one not proven", keys: []Version{ready(made), notReady(other)}, deferred: other, problem: ErrAmbiguous},

		{name: "one CKA_ID, two materials", keys: []Version{ready(one), ready(two)}, problem: ErrAmbiguous, says: one.ID.String()},
		{name: "one CKA_ID, two materials, one not proven", keys: []Version{ready(one), notReady(two)}, deferred: two, problem: ErrAmbiguous},
		{name: "one CKA_ID, two materials, succeeded", keys: []Version{ready(one), ready(two), ready(now)}, current: now},
		{name: "the same key twice on a token", keys: []Version{twice(old)}, problem: ErrAmbiguous, says: "second object"},
		{name: "the same key twice on a token, succeeded", keys: []Version{twice(old), ready(now)}, current: now},

		{name: "floor: it stays, whatever the clock says", keys: []Version{ready(old), ready(next)}, floor: next, current: next},
		{name: "floor: it stays although it is not proven", keys: []Version{ready(older), notReady(old)}, floor: old, current: old},
		{name: "floor: a newer one succeeds it", keys: []Version{ready(older), ready(old)}, floor: older, current: old},
		{name: "floor: a newer one that is not proven does not", keys: []Version{ready(older), notReady(old)}, floor: older, current: older, deferred: old},
		{name: "floor missing: no older one", keys: []Version{ready(older)}, floor: old, problem: ErrKeyMissing, says: old.ID.String()},
		{name: "floor missing: a newer one that is due", keys: []Version{ready(older), ready(now)}, floor: old, current: now},
		{name: "floor missing: a pending one does not stand in", keys: []Version{ready(older), ready(next)}, floor: old, problem: ErrKeyMissing},
		{name: "floor missing: a due one that is not proven", keys: []Version{ready(older), notReady(now)}, floor: old, deferred: now, problem: ErrKeyMissing},
		{name: "floor missing: empty ring", floor: old, problem: ErrKeyMissing},
		{name: "floor missing and all in the future", keys: []Version{ready(next)}, floor: old, problem: ErrKeyMissing},
		{name: "floor in the future and missing", keys: []Version{ready(old)}, floor: next, problem: ErrKeyMissing},

		{name: "floor, and a conflicting key with its CKA_ID that comes before", keys: []Version{ready(one), ready(two)}, floor: two, current: two, problem: ErrAmbiguous, says: one.ID.String()},
		{name: "floor, and a conflicting key with its CKA_ID that comes after", keys: []Version{ready(one), ready(two)}, floor: one, current: one, problem: ErrAmbiguous, says: two.ID.String()},
		{name: "floor, and its replacement: same version, other material", keys: []Version{ready(one)}, floor: two, problem: ErrKeyMissing},
		{name: "floor made elsewhere, and another", keys: []Version{ready(made), ready(other)}, floor: other, current: other, problem: ErrAmbiguous, says: made.ID.String()},
		{name: "floor made elsewhere, and another that comes after", keys: []Version{ready(made), ready(other)}, floor: made, current: made, problem: ErrAmbiguous, says: other.ID.String()},
		{name: "floor, and two newer ones of one CKA_ID", keys: []Version{ready(old), ready(one), ready(two)}, floor: old, current: old, problem: ErrAmbiguous},
		{name: "floor twice on a token", keys: []Version{twice(old)}, floor: old, current: old, problem: ErrAmbiguous},
	}
	for i := range tests {
		if tests[i].current.ID == none.ID && tests[i].problem == nil {
			panic(tests[i].name)
		}
	}
	return tests
}

func idOf(v *Version) KeyID {
	if v == nil {
		return KeyID{}
	}
	return v.ID
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, test := range chooseTests() {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := choose(versionsOf(test.keys), noon, test.floor.ID)
			if idOf(c.current) != test.current.ID {
				t.Errorf("current %v, want %v", idOf(c.current), test.current.ID)
			}
			if idOf(c.deferred) != test.deferred.ID {
				t.Errorf("deferred %v, want %v", idOf(c.deferred), test.deferred.ID)
			}
			if !errors.Is(c.problem, test.problem) || c.problem != nil && !strings.Contains(c.problem.Error(), test.says) {
				t.Errorf("problem %v, want %v that names %q", c.problem, test.problem, test.says)
			}
		})
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	older, old, next := keyAt(noon.Add(-2*time.Hour), "older"), keyAt(noon.Add(-time.Hour), "old"), keyAt(noon.Add(time.Hour), "next")
	all := versionsOf([]Version{ready(older), ready(old), ready(next)})
	for _, test := range []struct {
		current *Version
		want    []State
	}{
		{&all[0], []State{Current, Pending, Pending}},
		{&all[1], []State{Retained, Current, Pending}},
		{&all[2], []State{Retained, Retained, Current}},
		{nil, []State{Retained, Retained, Pending}},
	} {
		states(all, test.current, noon)
		for i, want := range test.want {
			if all[i].State != want {
				t.Errorf("current %v: %v is %s, want %s", idOf(test.current), all[i].ID, all[i].State, want)
			}
		}
	}
}

// A key that conflicts with the current one is not to come: it never was ordered after it, and it may be needed.
func TestStateOfAConflictingKey(t *testing.T) {
	t.Parallel()
	made, other := foreignKey("a", "made elsewhere"), foreignKey("b", "other")
	one, two := duplicates(noon.Add(-time.Minute))
	for _, pair := range [][2]softKey{{made, other}, {one, two}} {
		all := versionsOf([]Version{ready(pair[0]), ready(pair[1])})
		for i := range all {
			states(all, &all[i], noon)
			if all[i].State != Current || all[1-i].State != Retained {
				t.Errorf("current %v: states %s and %s", all[i].ID, all[0].State, all[1].State)
			}
		}
	}
}

func TestDuplicatesAreNamed(t *testing.T) {
	t.Parallel()
	duplicate := KeyID{Ring: "r", Version: "x01", Fingerprint: [8]byte{1}}
	other := duplicate
	other.Fingerprint[0]++
	single := KeyID{Ring: "r", Version: "x02"}
	for name, test := range map[string]struct {
		versions []Version
		named    []string
	}{
		"none":               {[]Version{{Key: Key{ID: duplicate}}, {Key: Key{ID: single}}}, nil},
		"two materials":      {[]Version{{Key: Key{ID: duplicate}}, {Key: Key{ID: other}}, {Key: Key{ID: single}}}, []string{duplicate.String(), other.String()}},
		"twice on one token": {[]Version{{Key: Key{ID: single}, duplicated: true}}, []string{single.String()}},
	} {
		err := duplicatesIn(test.versions)
		if (err != nil) != (test.named != nil) || err != nil && !errors.Is(err, ErrAmbiguous) {
			t.Errorf("%s: %v", name, err)
		}
		for _, id := range test.named {
			if !strings.Contains(err.Error(), id) {
				t.Errorf("%s: %v does not name %s", name, err, id)
			}
		}
	}
}
