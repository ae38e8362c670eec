package envelope

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Wait is a configured token on which a version has not been proven.
//
// With neither field set the token can be reached, or could be until a moment ago, and has not been tried since it was
// connected. With both it lacked the version when it was last seen.
type Wait struct {
	Token  string
	Lacks  bool // it does not hold the version, or cannot use it, as last seen
	Absent bool // it is out of reach, and has been for RingConfig.AbsentAfter
}

// heldBack reports whether a version that is due must wait. A token that can be reached holds it back without limit: a
// copy is missing there, and what is written now could not be read through that token. Absent tokens hold it back until
// v.Until, which is the same time on every node and after every restart. An emergency key waits for none of them.
func (v *Version) heldBack(now time.Time) bool {
	switch {
	case !v.Works:
		return true
	case v.ID.Emergency():
		return false
	}
	return slices.ContainsFunc(v.Waits, func(w Wait) bool { return !w.Absent || now.Before(v.Until) })
}

// HeldUntil is when a version that is held back becomes current at the latest. It is zero when there is no such time: a
// token that can be reached lacks the version, or no token works with it.
func (v *Version) HeldUntil() time.Time {
	if !v.Works || slices.ContainsFunc(v.Waits, func(w Wait) bool { return !w.Absent }) {
		return time.Time{}
	}
	return v.Until
}

// WhyHeldBack names the tokens that a version waits for, and until when, for people.
func (v *Version) WhyHeldBack() string {
	var reasons []string
	for _, w := range v.Waits {
		switch {
		case w.Absent && !v.ID.Emergency() && !v.Until.IsZero():
			reasons = append(reasons, fmt.Sprintf("%s is out of reach and is waited for until %s", w.Token, v.Until.UTC().Format(time.RFC3339)))
		case w.Absent:
			reasons = append(reasons, w.Token+" is out of reach")
		case w.Lacks && slices.Contains(v.Tokens, w.Token):
			reasons = append(reasons, w.Token+" holds it and cannot use it")
		case w.Lacks:
			reasons = append(reasons, w.Token+" does not hold it")
		default:
			reasons = append(reasons, "it has not been proven on "+w.Token+" yet")
		}
	}
	if reasons == nil {
		return "no token that can be reached works with it"
	}
	return strings.Join(reasons, "; ")
}

// Missing names the configured tokens that lack the current key as last seen: they could not take over.
func (v *View) Missing() []string {
	var missing []string
	if v.Current == nil {
		return nil
	}
	for _, w := range v.Current.Waits {
		if w.Lacks {
			missing = append(missing, w.Token)
		}
	}
	return missing
}

// proof is what the last exercise of a key on a token showed.
type proof struct {
	generation uint64 // the token's, in which it was exercised
	works      bool
}

type proofKey struct {
	id    KeyID
	token string
}

// judge sets what the tokens that can be reached, by their generations, and what was seen of the others say of each
// version. suspended are the keys that a token cannot use just now, by token. A proof counts for the connection in which it
// was made. Of a token that is out of reach the last one counts:
// the wait is for the copy to arrive, and it has arrived. r.mu is held.
func (r *Ring) judge(versions []Version, generations map[string]uint64, suspended map[string]map[KeyID]error, now time.Time) {
	waits := make([]Wait, 0, len(versions)*len(r.cfg.Tokens))
	for i := range versions {
		v := &versions[i]
		first := len(waits)
		for _, token := range r.cfg.Tokens {
			if cause := suspended[token][v.ID]; cause != nil {
				if v.Suspended == nil {
					v.Suspended = map[string]error{}
				}
				v.Suspended[token] = cause
				waits = append(waits, Wait{Token: token, Lacks: true})
				continue
			}
			last, tried := r.proven[proofKey{v.ID, token}]
			present := generations[token]
			fresh := present != 0 && last.generation == present
			if fresh && last.works {
				v.Works = true
				continue
			}
			if present == 0 && last.works {
				continue
			}
			_, read := r.read[token]
			waits = append(waits, Wait{
				Token:  token,
				Lacks:  read && !slices.Contains(v.Tokens, token) || tried && !last.works && (fresh || present == 0),
				Absent: present == 0 && now.Sub(r.lastSeen(token)).Abs() >= r.cfg.AbsentAfter,
			})
		}
		v.Waits = waits[first:len(waits):len(waits)]
		v.Ready = v.Works && len(v.Waits) == 0
		if !v.Activation.IsZero() {
			v.Until = v.Activation.Add(r.cfg.Grace)
		}
	}
}

// lastSeen is when the token could be reached last, or when the ring was made. r.mu is held.
func (r *Ring) lastSeen(token string) time.Time {
	if at, ok := r.seen[token]; ok {
		return at
	}
	return r.began
}
