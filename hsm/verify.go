package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// checkInterval is the shortest time between two checks of one key in one connection.
const checkInterval = time.Second

// suspicion is what an operation holds against a key, or against the connection where id is zero.
type suspicion struct {
	id   envelope.KeyID
	err  error
	sure bool // the connection is of no use: no check is needed
}

// suspected says that something is wrong with a key of gen. Who needs the key waits until the supervisor has looked.
func (t *Token) suspected(gen *generation, id envelope.KeyID, err error) {
	t.suspect(gen, suspicion{id: id, err: err})
}

// condemned says that gen is of no use: it is dropped without a check.
func (t *Token) condemned(gen *generation, err error) {
	t.suspect(gen, suspicion{err: err, sure: true})
}

func (t *Token) suspect(gen *generation, s suspicion) {
	t.mu.Lock()
	known, ok := t.suspects[s.id]
	if t.gen == gen && (!ok || !known.sure && (s.sure || classOf(known.err) < classOf(s.err))) {
		t.suspects[s.id] = s
	}
	t.mu.Unlock()
	t.wakeUp()
}

// isSuspected reports whether the key, or the connection as such, is to be looked into first; t.mu is held.
func (t *Token) isSuspected(id envelope.KeyID) bool {
	if len(t.suspects) == 0 {
		return false
	}
	_, key := t.suspects[id]
	_, connection := t.suspects[envelope.KeyID{}]
	return key || connection
}

// verifySuspicions acts on what was suspected of the present generation, on suspended keys whose time has come, and on an
// open circuit.
func (t *Token) verifySuspicions(ctx context.Context) {
	t.tidy(ctx)
	gen, due := t.toCheck()
	if gen == nil {
		return
	}
	for _, s := range due {
		if s.sure {
			t.giveUp(gen, s.err)
			return
		}
	}
	for _, s := range due {
		if !t.verify(ctx, gen, s) {
			return
		}
	}
	hanging, _ := gen.worker.Hanging(t.hangsAfter())
	switch {
	case hanging == 0:
		t.change(func() { t.forgiven = 0 })
	case t.circuitOpen() && len(due) == 0:
		if found := t.check(ctx, gen, envelope.KeyID{}); found.verdict == keyWorks {
			t.change(func() { t.forgiven = hanging })
		} else if react(classNone, found.verdict) == connectAgain {
			t.giveUp(gen, found.err)
		}
	}
}

// toCheck is what is to be checked now. What was checked within the last checkInterval waits.
func (t *Token) toCheck() (gen *generation, due []suspicion) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen == nil {
		return nil, nil
	}
	now := time.Now()
	for id, s := range t.suspects { // in no order: none waits for another
		if wait := checkInterval - now.Sub(t.gen.checked[id]); wait > 0 && !s.sure {
			time.AfterFunc(wait, t.wakeUp)
			continue
		}
		due = append(due, s)
	}
	for id, s := range t.suspended {
		if _, suspected := t.suspects[id]; !suspected && !now.Before(s.until) {
			due = append(due, suspicion{id: id})
		}
	}
	return t.gen, due
}

// verify checks one suspicion and does what the decision says. false: the connection is given up.
func (t *Token) verify(ctx context.Context, gen *generation, s suspicion) bool {
	found := t.check(ctx, gen, s.id)
	t.mu.Lock()
	if gen.checked == nil {
		gen.checked = map[envelope.KeyID]time.Time{}
	}
	gen.checked[s.id] = time.Now()
	t.mu.Unlock()
	switch react(classOf(s.err), found.verdict) {
	case connectAgain:
		t.giveUp(gen, errors.Join(s.err, found.err))
		return false
	case suspendKey:
		t.suspendKey(gen, s.id, found.err)
	case seekKey:
		gen.move(s.id, 0)
	case goOn:
		if found.verdict == keyWorks {
			if found.handle != 0 {
				gen.move(s.id, found.handle)
			}
			t.unsuspend(s.id)
		}
	}
	t.change(func() {
		if !t.suspects[s.id].sure { // that came during the check
			delete(t.suspects, s.id)
		}
	})
	return true
}

// move has the key under another handle, or takes it out for the handle 0, unless a reading has just replaced the table: that
// one knows better.
func (g *generation) move(id envelope.KeyID, handle p11.Object) {
	old := g.table.Load()
	g.table.CompareAndSwap(old, old.with(id, handle))
}

// giveUp drops the connection; in which worker the next one is made goes by the error.
func (t *Token) giveUp(gen *generation, err error) {
	if classOf(err) == classModule {
		t.requireNewWorker()
	}
	t.drop(gen, err.Error())
}

// tidy closes sessions that would not close before. When half of them will not, the worker is replaced.
func (t *Token) tidy(ctx context.Context) {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen == nil || gen.leftOpen() == 0 {
		return
	}
	err := t.sequence(ctx, "closing sessions", gen, gen.closeUnclosed)
	if err != nil && !ranOutOfTime(err) && !errors.Is(err, errStale) && gen.leftOpen() >= max(1, t.cfg.MaxSessions/2) {
		t.requireNewWorker()
		t.drop(gen, err.Error())
	}
}

func (g *generation) leftOpen() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.unclosed)
}

// permitForCheck waits for a permit, but not when all are held by calls that hang: none would come back, and a successor waits
// for the supervisor, which makes this check.
func (t *Token) permitForCheck(gen *generation) bool {
	late, woken := time.After(t.cfg.CallTimeout/2), false
	defer func() {
		if woken {
			t.wakeUp() // it may have meant something else
		}
	}()
	for {
		select {
		case t.permits <- struct{}{}:
			return true
		default:
		}
		if hanging, _ := gen.worker.Hanging(t.hangsAfter()); hanging >= t.usable() {
			return false
		}
		select {
		case t.permits <- struct{}{}:
			return true
		case <-t.wake: // one more may hang
			woken = true
		case <-late:
			return false
		}
	}
}

// check finds out about a key of gen, or about gen, on a session that is surely new, in the place of one of the maxSessions.
func (t *Token) check(ctx context.Context, gen *generation, id envelope.KeyID) (found finding) {
	err := t.sequence(ctx, "checking", gen, func(api p11.API) error {
		if !t.permitForCheck(gen) {
			return errAbandoned // ours are all at work: what becomes of them tells more
		}
		defer t.releasePermit()
		s, err := t.session(ctx, time.Now().Add(t.cfg.CallTimeout), gen, true)
		switch {
		case errors.Is(err, errUnclosed), mayBeLimit(err) && t.atWork() > 1:
			return errAbandoned
		case err != nil:
			return fmt.Errorf("opening session: %w", err)
		}
		c := &checker{
			api: api, slot: gen.slot, session: s, ring: t.common.Ring, profile: t.common.Profile,
			loggedIn: gen.loggedIn, table: gen.table.Load(), avoid: t.isSuspended,
		}
		found = c.check(id)
		if c.session != 0 {
			if err := closeSession(api, c.session); err != nil && !ranOutOfTime(err) {
				t.requireNewWorker()
				return errors.Join(found.err, err)
			}
		}
		return nil
	})
	switch {
	case err == nil:
		return found
	case ranOutOfTime(err), errors.Is(err, errStale):
		return finding{verdict: undecided, err: err}
	}
	return finding{verdict: nothingWorks, err: err}
}
