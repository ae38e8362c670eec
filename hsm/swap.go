package hsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// A worker is replaced while it serves, because something is wrong with it, or because its library may not show all that
// the token holds: some libraries read their keys once, when they are initialised. The successor takes over when it is
// connected; tokens that refuse a second login or session lose the first one before (stopFirst).

// Swap is how the worker of a token that serves is replaced.
type Swap string

// The ways of replacing a worker. The empty one stands for SwapOverlap until the token refuses it.
const (
	SwapOverlap   Swap = "overlap"    // the successor is connected beside it
	SwapStopFirst Swap = "stop-first" // it is ended first, and requests wait
)

const (
	// seekInterval is the shortest time between two swaps for keys that the token does not show.
	seekInterval = 10 * time.Minute
	// unknownFor is how long a key that a new worker did not show either causes no further swap, where views are compared
	// meanwhile: that finds it, should it arrive. Elsewhere it is seekInterval.
	unknownFor = time.Hour
	// maxUnknown bounds the keys that are remembered so.
	maxUnknown = 1024
	// defaultViewAge is the oldest view of a token that is taken for the whole ring, while its library has not shown that
	// it sees new keys by itself. A rotation is announced at least as long before, by default.
	defaultViewAge = 10 * time.Minute
	// sparesLogins is how long views are not compared after a login of which nobody saw the outcome: the few that the attempt
	// guard still allows are for a connection that is needed.
	sparesLogins = 24 * time.Hour
)

// swap is what is known of replacing the worker. Token.mu guards it.
type swap struct {
	why       string        // something is wrong with the present connection; empty: nothing is
	seeking   chan struct{} // closed when the swap for sought has been made or given up; nil: there is none
	sought    []envelope.KeyID
	soughtAt  time.Time // when the last swap of this kind was asked for
	stopFirst bool      // the token has refused a second login or session
	live      bool      // the library has shown a key that it did not show before
	unseen    time.Time // when nobody saw the outcome of the last login; zero: somebody did
	viewed    time.Time // when a new worker read the ring last, or tried
}

// requestSwap has the worker of gen replaced.
func (t *Token) requestSwap(gen *generation, why string) {
	t.mu.Lock()
	if t.gen == gen && t.swap.why == "" {
		t.swap.why = why
	}
	t.mu.Unlock()
	t.wakeUp()
}

// Seek implements envelope.Seeker.
func (t *Token) Seek(id envelope.KeyID) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch since, known := t.unknown[id]; {
	case id.Ring != t.common.Ring, t.gen == nil, known && now.Sub(since) < t.staysUnknown():
		return nil
	case t.swap.seeking != nil:
	case now.Sub(t.swap.soughtAt) < seekInterval:
		return nil
	default:
		t.swap.seeking, t.swap.soughtAt = make(chan struct{}), now
		defer t.wakeUp()
	}
	if len(t.swap.sought) < maxUnknown && !slices.Contains(t.swap.sought, id) {
		t.swap.sought = append(t.swap.sought, id)
	}
	return t.swap.seeking
}

// endSeek tells those who wait for a key that there is nothing to wait for any more. What the successor does not show is
// unknown; nil: there is no successor. t.mu is held.
func (t *Token) endSeek(successor *table) {
	if t.swap.seeking == nil {
		return
	}
	now := time.Now()
	for id, since := range t.unknown {
		if now.Sub(since) >= t.staysUnknown() {
			delete(t.unknown, id)
		}
	}
	for _, id := range t.swap.sought {
		if successor != nil && successor.byID[id] == nil && len(t.unknown) < maxUnknown {
			t.unknown[id] = now
		}
	}
	close(t.swap.seeking)
	t.swap.seeking, t.swap.sought = nil, nil
}

// staysUnknown is how long a key is unknown that a new worker did not show; t.mu is held.
func (t *Token) staysUnknown() time.Duration {
	if t.stopsFirstLocked() {
		return seekInterval
	}
	return unknownFor
}

// successor is why a successor is to be made beside a connection that serves.
type successor int

const (
	noSuccessor   successor = iota
	curesWorker             // something is wrong
	showsKey                // a key is sought
	comparesViews           // does a new worker show more?
)

// wantsSuccessor reports whether the connection is to be replaced while it serves, as far as it does.
func (t *Token) wantsSuccessor() successor {
	t.mu.Lock()
	gen, s := t.gen, t.swap
	t.mu.Unlock()
	switch {
	case s.why != "", t.tooManyHang(gen, 0):
		return curesWorker
	case s.seeking != nil:
		return showsKey
	case !s.live && !t.stopsFirst() && time.Since(s.viewed) >= t.common.viewAge && time.Since(s.unseen) >= sparesLogins:
		return comparesViews
	}
	return noSuccessor
}

func (t *Token) isSeeking() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.swap.seeking != nil
}

// stopsFirst reports whether the worker is to be ended before its successor is connected.
func (t *Token) stopsFirst() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stopsFirstLocked()
}

// stopsFirstLocked is stopsFirst; t.mu is held.
func (t *Token) stopsFirstLocked() bool {
	return t.cfg.Swap == SwapStopFirst || t.cfg.Swap == "" && t.swap.stopFirst
}

// noteRefused remembers that the token refuses a second login or session, if that is what err says. It reports whether the
// worker that serves is to be ended for that.
func (t *Token) noteRefused(err error) bool {
	if t.cfg.Swap != "" || !refusesSecond(err) {
		return false
	}
	t.mu.Lock()
	known := t.swap.stopFirst
	t.swap.stopFirst = true
	t.mu.Unlock()
	if !known {
		t.log.Warn("the token refuses a second connection beside the first: from now on its worker is ended before another one is connected, and requests wait meanwhile",
			"error", err, "hint", "set tokens["+t.cfg.Name+"].swap: stop-first in the configuration, or allow the token more sessions")
	}
	return true
}

// refusesSecond reports whether an error of a second worker comes of the first one.
func refusesSecond(err error) bool {
	rv, isCKR := p11.RVOf(err)
	return isCKR && slices.Contains([]p11.RV{
		pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_SESSION_EXISTS, pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED,
		pkcs11.CKR_USER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES,
	}, rv)
}

// showsMore reports whether a new connection shows a key that can be served and that the present one does not.
func (t *Token) showsMore(successor *generation) bool {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen == nil {
		return true
	}
	shown := gen.table.Load()
	return slices.ContainsFunc(successor.table.Load().keys, func(k envelope.Key) bool { return k.Refused == "" && !shown.has(k.CKAID) })
}

// noteView sets when views are compared again: nodes do it at different times.
func (t *Token) noteView() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.swap.viewed = time.Now().Add(-rand.N(t.common.viewAge/10 + 1))
}

// replacedFor is why the worker is replaced, for the log; t.mu is held.
func (t *Token) replacedFor(kind successor) string {
	why := t.swap.why
	switch {
	case kind == comparesViews:
		why = "a new one shows keys that it does not show"
	case kind == showsKey && len(t.swap.sought) > 0:
		why = fmt.Sprintf("it does not show %s", t.swap.sought[0])
	case why == "":
		why = "calls hang in it"
	}
	return "its worker is replaced: " + why
}
