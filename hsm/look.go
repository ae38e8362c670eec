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

// lookInto acts on what was suspected of the present generation, and on an open circuit.
func (t *Token) lookInto(ctx context.Context) {
	t.tidy(ctx)
	t.mu.Lock()
	gen, suspect := t.gen, t.suspect
	t.mu.Unlock()
	open := t.circuitOpen()
	switch {
	case gen == nil || suspect == nil && !open:
		t.mu.Lock()
		if hanging, _ := t.mod.flight.hanging(t.cfg.Name, t.cfg.CallTimeout); hanging == 0 {
			t.forgiven = 0
		}
		t.mu.Unlock()
		return
	case suspect != nil && suspect.fault >= faultLogin:
		if suspect.fault == faultModule {
			t.mod.lost.Store(true)
			t.noteUnclean()
		}
		t.drop(suspect.err.Error())
		return
	}
	hanging, _ := t.mod.flight.hanging(t.cfg.Name, t.cfg.CallTimeout)
	err := t.check(ctx, gen)
	switch {
	case err == nil:
		t.change(func() {
			t.suspect = nil
			t.forgiven = hanging
		})
	case isAway(err):
		// Nothing can be said and nothing can be done while calls hang: a module must not be finalised under
		// them. Callers are refused by the open circuit.
		t.change(func() { t.suspect = nil })
	default:
		t.drop(err.Error())
	}
}

// tidy closes sessions that would not close before. When half of them will not, the module is initialised anew.
func (t *Token) tidy(ctx context.Context) {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen == nil || gen.leftOpen() == 0 {
		return
	}
	err := t.onControl(ctx, "closing sessions", func() {}, func(api p11.API, _ *call) error {
		if gen.ended() {
			return errStale // after a C_Finalize its numbers may be other sessions'
		}
		return gen.closeUnclosed(api)
	})
	if err != nil && !isAway(err) && !errors.Is(err, errStale) && gen.leftOpen() >= max(1, t.cfg.MaxSessions/2) {
		t.noteUnclean()
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
	return t.onControl(ctx, "checking", func() {}, func(_ p11.API, _ *call) error {
		select {
		case t.permits <- struct{}{}:
			defer t.releasePermit()
		case <-time.After(t.cfg.CallTimeout / 2):
			return errAbandoned // ours are all at work: what becomes of them tells more
		}
		if gen.ended() {
			return errStale
		}
		s, err := t.session(gen, true)
		switch {
		case errors.Is(err, errUnclosed), hasRV(err, pkcs11.CKR_SESSION_COUNT) && t.atWork() > 1:
			return errAbandoned
		case err != nil:
			return fmt.Errorf("opening session: %w", err)
		}
		err = tryKeys(t.api, &s, gen, t.common.Profile)
		if closeErr := closeSession(t.api, s); closeErr != nil {
			t.noteUnclean()
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
		if faultOf(err) != faultData || errors.Is(err, errWrongKey) {
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
