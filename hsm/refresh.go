package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// freshReading is how old the reading with which a connection was made may be, and be given to the first who asks for one. A
// made-up key_id causes a reading no more often.
const freshReading = time.Second

// firstReading is the ring as the connection was made with; nil: somebody has asked for it, or it is too old.
func (g *generation) firstReading() []envelope.Key {
	if g.given.Swap(true) || time.Since(g.madeAt) > freshReading {
		return nil
	}
	return g.table.Load().keys
}

// Keys implements envelope.Token. It reads the ring on the admin session and replaces the table of the
// present generation.
func (t *Token) Keys(ctx context.Context) ([]envelope.Key, error) {
	limited, cancel := context.WithTimeoutCause(ctx, t.cfg.CallTimeout, errAbandoned)
	defer cancel()
	gen, err := t.ready(limited)
	if err != nil {
		return nil, err
	}
	keys := gen.firstReading()
	if keys != nil {
		return keys, nil
	}
	err = t.onAdmin(ctx, "reading the ring", gen, func(api p11.API) error {
		reader := t.reader(api, gen.slot, gen.admin)
		old := gen.table.Load()
		done := t.lendSessions(ctx, reader, gen)
		read, err := reader.read(old)
		done(err)
		gen.admin = reader.session
		if reader.leftOpen {
			t.requireNewWorker()
		}
		if err != nil {
			return err
		}
		if len(read.byID) == 0 && len(old.byID) > 0 {
			return errVanished
		}
		gen.table.Store(read)
		keys = read.keys
		return nil
	})
	switch {
	case err == nil:
		t.mu.Lock()
		t.restorePermits() // other programs may have given sessions back
		t.mu.Unlock()
		return keys, nil
	case ranOutOfTime(err), errors.Is(err, errStale):
	case errors.Is(err, errVanished):
		t.suspected(gen, classToken, err)
	default:
		t.suspected(gen, max(classOf(err), classLogin), err)
	}
	return nil, fmt.Errorf("token %s: %w", t.cfg.Name, asUnavailable(err))
}

// Distrust implements envelope.Distruster: the connection is given up, and the self-test decides about the next one.
func (t *Token) Distrust(why error) {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen != nil {
		t.suspected(gen, classToken, why)
	}
}
