package envelope

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// State is where a version stands in the life of a key.
type State string

const (
	Pending  State = "pending"  // made, not current yet
	Current  State = "current"  // new DEKs are wrapped with it
	Retained State = "retained" // was current; opens what it wrapped
	Refused  State = "refused"  // on the token and never served: Key.Refused says why
)

// Version is one key of the ring as the tokens hold it, and where it stands.
type Version struct {
	Key
	State  State
	Tokens []string // the names of the tokens that hold it, in the order of the configuration
	Works  bool     // sealed and opened with on a token that can be reached now
	Ready  bool     // it works, and has been proven on every configured token
	Waits  []Wait   // the configured tokens on which it has not been proven
	// Suspended are the tokens that hold it, serve other keys, and cannot use this one just now, with the cause.
	Suspended  map[string]error
	Until      time.Time // from then on it does not wait for absent tokens
	duplicated bool      // one token holds it more than once
}

// compareIDs orders versions by activation, then CKA_ID, then fingerprint. A key made elsewhere has been
// active always. The key_id alone tells the order, so a key that is gone still has its place.
//
// The text of a version sorts as its CKA_ID does: both forms are of hex digits, ours begins with the activation in a
// fixed number of them. It is compared as it stands, since every request does so.
func compareIDs(a, b KeyID) int {
	aOwn, bOwn := strings.HasPrefix(a.Version, idMagic), strings.HasPrefix(b.Version, idMagic)
	switch {
	case aOwn && !bOwn:
		return 1
	case bOwn && !aOwn:
		return -1
	}
	return cmp.Or(strings.Compare(a.Version, b.Version), bytes.Compare(a.Fingerprint[:], b.Fingerprint[:]))
}

// choice is the outcome of asking which key is current.
type choice struct {
	current  *Version // nil: none
	deferred *Version // due, and held back because of its Waits; nil: none
	problem  error    // why there is no current key, or what is wrong although there is one; nil: nothing
}

// choose says which version is current: the latest that is due and not held back, and never one older than
// floor, the latest that is known to have been current or to have been decrypted under (zero: none known). It
// decides without I/O and without state, so that a simulation can ask it anything.
//
// versions are the served ones in order. When none is due (a clock at 1970) the earliest counts as due:
// the API server must be able to start. A choice among equals is an error that names them: floor stays
// current then if it is there, because its place is proven.
func choose(versions []Version, now time.Time, floor KeyID) choice {
	var c choice
	for i := len(versions) - 1; i >= 0; i-- {
		v := &versions[i]
		if !floor.IsZero() && compareIDs(v.ID, floor) < 0 {
			break
		}
		isFloor := v.ID == floor
		if !isFloor && !due(versions, i, now, floor) {
			continue
		}
		if !isFloor && v.heldBack(now) {
			c.deferred = cmp.Or(c.deferred, v)
			continue
		}
		c.current = v
		break
	}
	if c.current == nil {
		c.problem = whyNone(versions, c.deferred, floor)
		return c
	}
	if conflicting := conflictsWith(versions, c.current); conflicting != "" {
		c.problem = fmt.Errorf("%w: %s could be meant as well as %s", ErrAmbiguous, conflicting, c.current.ID)
		c.current = find(versions, floor)
	}
	return c
}

// duplicatesIn names the versions that share a CKA_ID, with other material or on one token; nil: none do. Their
// fingerprints tell them apart for Decrypt, and once a later key is current they are in nobody's way; somebody made a
// mistake all the same, and must be told.
func duplicatesIn(versions []Version) error {
	var duplicates []string
	for i := range versions {
		v := &versions[i]
		// In order, equal CKA_IDs stand side by side.
		before := i > 0 && versions[i-1].ID.Version == v.ID.Version
		after := i+1 < len(versions) && versions[i+1].ID.Version == v.ID.Version
		switch {
		case v.duplicated:
			duplicates = append(duplicates, v.ID.String()+" (two objects)")
		case before, after:
			duplicates = append(duplicates, v.ID.String())
		}
	}
	if duplicates == nil {
		return nil
	}
	return fmt.Errorf("%w: one CKA_ID twice: %s", ErrAmbiguous, strings.Join(duplicates, ", "))
}

// find is the version of that key_id; nil: none.
func find(versions []Version, id KeyID) *Version {
	i := slices.IndexFunc(versions, func(v Version) bool { return v.ID == id })
	if i < 0 {
		return nil
	}
	return &versions[i]
}

// due reports whether versions[i] may be current at now by the clock.
func due(versions []Version, i int, now time.Time, floor KeyID) bool {
	if !versions[i].Activation.After(now) {
		return true
	}
	return floor.IsZero() && i == 0 // all are in the future: the earliest stands in
}

func whyNone(versions []Version, deferred *Version, floor KeyID) error {
	switch {
	case !floor.IsZero():
		return fmt.Errorf("%w: %s", ErrKeyMissing, floor)
	case len(versions) == 0:
		return ErrRingEmpty
	case deferred != nil:
		return fmt.Errorf("%w: %s is held back: %s", ErrNotProven, deferred.ID, deferred.WhyHeldBack())
	}
	return ErrNotProven
}

// conflictsWith names the versions that are current's equals: another with its CKA_ID, itself twice on one
// token, or, for a key made elsewhere, any other made elsewhere, since nothing orders those.
func conflictsWith(versions []Version, current *Version) string {
	var conflicting []string
	if current.duplicated {
		conflicting = append(conflicting, "a second object of the same CKA_ID and material")
	}
	for i := range versions {
		v := &versions[i]
		if v.ID == current.ID {
			continue
		}
		if unordered(v, current) {
			conflicting = append(conflicting, v.ID.String())
		}
	}
	return strings.Join(conflicting, ", ")
}

// unordered reports whether nothing says that one version comes after the other: one CKA_ID with different
// material, or two made elsewhere.
func unordered(a, b *Version) bool {
	return a.ID.Version == b.ID.Version || a.Activation.IsZero() && b.Activation.IsZero()
}

// states sets the State of each version, given the current one (nil: none). Without a current key, what
// is due is retained and the rest pending. A key that conflicts with the current one is retained too: it will not become
// current by itself, and another node may have sealed under it.
func states(versions []Version, current *Version, now time.Time) {
	for i := range versions {
		v := &versions[i]
		switch {
		case current != nil && v.ID == current.ID:
			v.State = Current
		case current != nil && compareIDs(v.ID, current.ID) > 0 && !unordered(v, current),
			current == nil && v.Activation.After(now):
			v.State = Pending
		default:
			v.State = Retained
		}
	}
}
