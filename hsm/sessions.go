package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// defaultMaxWaiting bounds the callers that wait for a session of one token.
const defaultMaxWaiting = 512

// session takes an idle session, or opens one where there is none. fresh: surely a new one, in the place of
// an idle one if there is any.
func (t *Token) session(ctx context.Context, until time.Time, gen *generation, fresh bool) (p11.Session, error) {
	s, ok := gen.takeIdle()
	if !ok {
		if t.atWork()+gen.leftOpen() > t.cfg.MaxSessions {
			return 0, errUnclosed
		}
		return t.openSession(ctx, until, gen)
	}
	if !fresh {
		return s, nil
	}
	t.discard(gen, s)
	return t.openSession(ctx, until, gen)
}

// openSession opens a working session; where the token has no more to give, one of ours that has become idle meanwhile does.
func (t *Token) openSession(ctx context.Context, until time.Time, gen *generation) (p11.Session, error) {
	s, err := gen.worker.For(ctx, time.Until(until)).OpenSession(gen.slot, false)
	switch {
	case err == nil:
		t.restorePermit() // there may be more
	case mayBeLimit(err):
		if idle, ok := gen.takeIdle(); ok {
			return idle, nil
		}
	}
	return s, err
}

// roomToRead is how many working sessions the first reading of a connection may open: those that no other connection has.
func (t *Token) roomToRead() int { return max(0, t.cfg.MaxSessions-t.Sessions()) }

// keysPerSession is how many keys are worth another session when a ring is read again.
const keysPerSession = 4

// lendSessions lets a reader open working sessions, at most half of those that no operation needs now. They are new: one
// that stood idle may hang. done takes them back.
func (t *Token) lendSessions(ctx context.Context, r *keyReader, gen *generation) (done func(err error)) {
	want := min(readSessions-1, len(gen.table.Load().keys)/keysPerSession, (cap(t.permits)-len(t.permits))/2)
	for r.room < want && t.tryPermit() {
		r.room++
	}
	idle := gen.idleSessions()
	r.open = func() (p11.Session, error) { return t.session(ctx, time.Now().Add(t.cfg.CallTimeout), gen, true) }
	return func(err error) {
		for _, s := range r.beside {
			t.putBack(gen, s, err)
		}
		for range r.room {
			t.releasePermit()
		}
		go t.closeSpare(gen, gen.idleSessions()-max(idle, 1))
	}
}

// closeSpare closes n idle sessions: where many plugins share an HSM, its sessions end first. An operation that needs one
// meanwhile goes first.
func (t *Token) closeSpare(gen *generation, n int) {
	for ; n > 0 && t.tryPermit(); n-- {
		if s, ok := gen.takeIdle(); ok {
			t.discard(gen, s)
		}
		t.releasePermit()
	}
}

func (g *generation) idleSessions() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.idle)
}

func (t *Token) tryPermit() bool {
	select {
	case t.permits <- struct{}{}:
		return true
	default:
		return false
	}
}

// mayBeLimit reports whether C_OpenSession may have failed because the token has no more sessions: tokens say so by any
// value, but not by those that say that library, slot or token are gone. This process may also have no more descriptors.
func mayBeLimit(err error) bool {
	_, isCKR := p11.RVOf(err)
	return isCKR && classOf(err) < classToken || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

func (g *generation) takeIdle() (s p11.Session, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := len(g.idle)
	if n == 0 {
		return 0, false
	}
	s = g.idle[n-1]
	g.idle = g.idle[:n-1]
	return s, true
}

// burnPermits is told that the token had no session for a caller, who holds a permit: its own limit, or what other programs
// leave of it, is lower than maxSessions. That permit, which the caller must then keep, is taken out, and all that nobody
// holds where the token says plainly that it is a limit; so callers wait for the sessions that there are and do not fail.
// It is believed only if an operation that is begun afterwards succeeds: else restorePermits gives them back.
// false: nothing was taken out, because no other session of ours is at work that could be waited for.
func (t *Token) burnPermits(gen *generation, plain bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen != gen || len(t.permits)-t.burned <= 1 {
		return false
	}
	for t.burned++; plain; t.burned++ {
		select {
		case t.permits <- struct{}{}:
		default:
			return true
		}
	}
	return true
}

// atWork is how many operations have a permit, abandoned ones included.
func (t *Token) atWork() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.permits) - t.burned
}

// usable is how many operations can be at work at once.
func (t *Token) usable() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return cap(t.permits) - t.burned
}

// restorePermits gives back all that burnPermits took.
func (t *Token) restorePermits() {
	for t.restorePermit() {
	}
}

// restorePermit gives back one permit that burnPermits took, so that one more session is tried: false: it took none. When
// that one can be opened the next follows.
func (t *Token) restorePermit() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.burned == 0 {
		return false
	}
	t.burned--
	<-t.permits
	return true
}

// putBack keeps a session that is sound, and closes one that is not: an Init without its end would leave
// CKR_OPERATION_ACTIVE behind.
func (t *Token) putBack(gen *generation, s p11.Session, err error) {
	gen.mu.Lock()
	keep := err == nil && !gen.closed
	if keep {
		gen.idle = append(gen.idle, s)
	}
	gen.mu.Unlock()
	if !keep {
		t.discard(gen, s)
	}
}

// discard closes a working session. One that the token will not close goes on counting against maxSessions
// until it is closed after all, or the worker has ended.
func (t *Token) discard(gen *generation, s p11.Session) {
	err := closeSession(gen.api, s)
	if err == nil {
		return
	}
	gen.mu.Lock()
	gen.unclosed = append(gen.unclosed, s)
	gen.mu.Unlock()
}

func (g *generation) ended() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (t *Token) releasePermit() { <-t.permits }

// takePermits takes what an operation needs, and returns what gives it back.
type takePermits func(ctx context.Context, until time.Time) (release func(), err error)

func (t *Token) takeOne(ctx context.Context, until time.Time) (release func(), err error) {
	return t.releasePermit, t.takePermit(ctx, until)
}

// takePermit waits for a working session to be free.
func (t *Token) takePermit(ctx context.Context, until time.Time) error {
	if t.tryPermit() {
		return nil
	}
	if int(t.waiting.Add(1)) > t.common.MaxWaiting {
		t.waiting.Add(-1)
		return fmt.Errorf("token %s: %w", t.cfg.Name, envelope.ErrBusy)
	}
	defer t.waiting.Add(-1)
	ctx, cancel := context.WithDeadlineCause(ctx, until, errAbandoned)
	defer cancel()
	select {
	case t.permits <- struct{}{}:
		return nil
	case <-ctx.Done():
		return t.outOfTime(ctx)
	}
}
