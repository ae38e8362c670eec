package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// verifySuspicion acts on what was suspected of the present generation, and on an open circuit.
func (t *Token) verifySuspicion(ctx context.Context) {
	t.tidy(ctx)
	t.mu.Lock()
	gen, suspect := t.gen, t.suspect
	t.mu.Unlock()
	switch {
	case gen == nil:
		return
	case suspect != nil && suspect.class >= classLogin:
		if suspect.class == classModule {
			t.requireNewWorker()
		}
		t.drop(suspect.err.Error())
		return
	}
	hanging, _ := gen.worker.Hanging(t.hangsAfter())
	if suspect == nil && !t.circuitOpen() {
		if hanging == 0 {
			t.change(func() { t.forgiven = 0 })
		}
		return
	}
	err := t.check(ctx, gen)
	switch {
	case err == nil:
		t.change(func() {
			t.suspect = nil
			t.forgiven = hanging
		})
	case ranOutOfTime(err): // calls hang, and nothing can be said: a successor is made
		t.change(func() { t.suspect = nil })
	default:
		t.drop(err.Error())
	}
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
		t.drop(err.Error())
	}
}

func (g *generation) leftOpen() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.unclosed)
}

// check is the independent look at a generation: a session that is surely new, in the place of one of the maxSessions,
// and the newest key used in every direction.
func (t *Token) check(ctx context.Context, gen *generation) error {
	return t.sequence(ctx, "checking", gen, func(api p11.API) error {
		select {
		case t.permits <- struct{}{}:
			defer t.releasePermit()
		case <-time.After(t.cfg.CallTimeout / 2):
			return errAbandoned // ours are all at work: what becomes of them tells more
		}
		s, err := t.session(ctx, time.Now().Add(t.cfg.CallTimeout), gen, true)
		switch {
		case errors.Is(err, errUnclosed), hasRV(err, pkcs11.CKR_SESSION_COUNT) && t.atWork() > 1:
			return errAbandoned
		case err != nil:
			return fmt.Errorf("opening session: %w", err)
		}
		err = tryKeys(api, &s, gen, t.common.Profile)
		if closeErr := closeSession(api, s); closeErr != nil && !ranOutOfTime(closeErr) {
			t.requireNewWorker()
			return errors.Join(err, closeErr)
		}
		return err
	})
}

// tryKeys uses the newest keys in every direction until one works: one bad key must not condemn the token. A session on
// which something failed is replaced.
func tryKeys(api p11.API, s *p11.Session, gen *generation, profile envelope.Profile) error {
	var failed error
	for _, held := range gen.table.Load().newest() {
		err := held.check(api, *s, profile)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, fmt.Errorf("using %s: %w", held.key.ID, err))
		if classOf(err) != classData || errors.Is(err, errWrongKey) {
			break
		}
		if err := closeSession(api, *s); err != nil {
			return errors.Join(failed, err)
		}
		if *s, err = api.OpenSession(gen.slot, false); err != nil {
			return errors.Join(failed, fmt.Errorf("opening session: %w", err))
		}
	}
	return failed
}
