package hsm

import (
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// A key is suspended when the token cannot use it while it can use another one. Its requests go to other tokens, or fail;
// the supervisor checks it again after a pause, and no request is spent on that.

// The pauses before a suspended key is checked again.
const (
	firstSuspension   = time.Second
	longestSuspension = time.Minute
)

// tooManySuspended is how many suspended keys are no matter of single keys any more; half of the ring is not either.
const tooManySuspended = 3

// suspension is the state of a suspended key. Token.mu guards it.
type suspension struct {
	until time.Time // of the next check
	pause time.Duration
	err   error
	since uint64 // the generation in which it began; 0: it could not be used from the beginning of one
}

// suspendKey suspends a key, or goes on doing so with twice the pause.
func (t *Token) suspendKey(gen *generation, id envelope.KeyID, err error) {
	t.mu.Lock()
	if t.gen != gen {
		t.mu.Unlock()
		return
	}
	s := t.suspended[id]
	begins := s == nil
	if begins {
		s = &suspension{since: gen.number}
		t.suspended[id] = s
	}
	s.err, s.pause = err, min(max(2*s.pause, firstSuspension), longestSuspension)
	s.until = time.Now().Add(s.pause)
	many := t.suspendsTooMany(gen)
	t.mu.Unlock()
	if begins {
		t.logSuspended(id, err)
	}
	if many != "" {
		t.requestSwap(gen, many)
	}
}

// suspendsTooMany says why the worker is to be replaced; empty: it is not. Keys that a new worker could not use from its
// beginning do not count: another one would not help. t.mu is held.
func (t *Token) suspendsTooMany(gen *generation) string {
	n := 0
	for _, s := range t.suspended {
		if s.since == gen.number {
			n++
		}
	}
	if held := len(gen.table.Load().byID); n > 0 && (n >= tooManySuspended || 2*n >= held) {
		return fmt.Sprintf("%d of its %d keys are suspended", n, held)
	}
	return ""
}

// suspendFailed suspends what a new connection could not use from its beginning, and nothing else. Token.mu is held.
func (t *Token) suspendFailed(shown *table) {
	before := t.suspended
	t.suspended = map[envelope.KeyID]*suspension{}
	for id, held := range shown.byID {
		if held.failed == nil {
			continue
		}
		pause := firstSuspension
		if s := before[id]; s != nil {
			pause = s.pause
		} else {
			t.logSuspended(id, held.failed)
		}
		t.suspended[id] = &suspension{until: time.Now().Add(pause), pause: pause, err: held.failed}
	}
}

func (t *Token) logSuspended(id envelope.KeyID, err error) {
	t.log.Warn("the token cannot use a key, and can use others: the key is suspended", "keyID", id.String(), "error", err,
		"hint", "see the vendor's log for that key; hsm-kms doctor shows whether it works again; other tokens take its requests meanwhile")
}

// unsuspend ends the suspension of a key, if there is one.
func (t *Token) unsuspend(id envelope.KeyID) {
	t.mu.Lock()
	s := t.suspended[id]
	delete(t.suspended, id)
	t.mu.Unlock()
	if s != nil {
		t.log.Info("the token can use the key again", "keyID", id.String())
	}
}

func (t *Token) isSuspended(id envelope.KeyID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.suspended[id] != nil
}

// Suspended implements envelope.Suspender.
func (t *Token) Suspended() map[envelope.KeyID]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.suspended) == 0 || t.gen == nil {
		return nil
	}
	suspended := make(map[envelope.KeyID]error, len(t.suspended))
	for id, s := range t.suspended {
		suspended[id] = s.err
	}
	return suspended
}

func (t *Token) keySuspended(id envelope.KeyID, cause error) error {
	return fmt.Errorf("token %s: %w: %w: %s: %w", t.cfg.Name, envelope.ErrUnavailable, envelope.ErrKeySuspended, id, cause)
}
