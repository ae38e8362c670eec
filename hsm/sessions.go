package hsm

import (
	"context"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// defaultMaxWaiting bounds the callers that wait for a session of one token.
const defaultMaxWaiting = 512

// session takes an idle session, or opens one where there is none. fresh: surely a new one, in the place of
// an idle one if there is any.
func (t *Token) session(gen *generation, fresh bool) (p11.Session, error) {
	gen.mu.Lock()
	n := len(gen.idle)
	if n == 0 {
		full := len(t.permits)+len(gen.unclosed) > t.cfg.MaxSessions
		gen.mu.Unlock()
		if full {
			return 0, errUnclosed
		}
		return t.openSession(gen)
	}
	s := gen.idle[n-1]
	gen.idle = gen.idle[:n-1]
	gen.mu.Unlock()
	if !fresh {
		return s, nil
	}
	t.discard(gen, s)
	return t.openSession(gen)
}

// openSession opens a working session. When the token has no more to give but some of ours exist, this
// caller's permit stays taken for the rest of the generation: the token's own limit is the lower one.
func (t *Token) openSession(gen *generation) (p11.Session, error) {
	s, err := t.api.OpenSession(gen.slot, false)
	if hasRV(err, pkcs11.CKR_SESSION_COUNT) {
		t.burnPermit()
	}
	return s, err
}

func (t *Token) burnPermit() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.permits)-t.burned <= 1 {
		return // this is the only session: other programs hold the rest, and may give them back
	}
	select {
	case t.permits <- struct{}{}:
		t.burned++
	default:
	}
}

// restorePermits gives back what burnPermit took; t.mu is held.
func (t *Token) restorePermits() {
	for ; t.burned > 0; t.burned-- {
		<-t.permits
	}
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
// until it is closed after all, or the module is finalised.
func (t *Token) discard(gen *generation, s p11.Session) {
	if closeSession(t.api, s) == nil {
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

// takePermit waits for a working session to be free.
func (t *Token) takePermit(ctx context.Context, until time.Time) error {
	select {
	case t.permits <- struct{}{}:
		return nil
	default:
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
