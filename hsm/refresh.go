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
		reader.lenient = true
		old := gen.table.Load()
		done := t.lendSessions(ctx, reader, gen)
		read, err := reader.read(old)
		done(err)
		if _, isCKR := p11.RVOf(err); isCKR {
			read, err = readAgain(reader, old, err)
		}
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
		t.noteLive(old, read)
		keys = read.keys
		return nil
	})
	switch {
	case err == nil:
		t.restorePermit() // other programs may have given sessions back
		return keys, nil
	case ranOutOfTime(err), errors.Is(err, errStale):
	default:
		t.condemned(gen, err)
	}
	return nil, fmt.Errorf("token %s: %w", t.cfg.Name, asUnavailable(err))
}

// readAgain reads on another session, because what failed may have been the one that was there.
func readAgain(r *keyReader, old *table, failed error) (*table, error) {
	s, err := r.api.OpenSession(r.slot, false)
	if err != nil {
		return nil, failed
	}
	if closeSession(r.api, r.session) != nil {
		r.leftOpen = true
	}
	r.session, r.beside, r.room = s, nil, 0
	return r.read(old)
}

// Distrust implements envelope.Distruster: the connection is given up, and the self-test decides about the next one.
func (t *Token) Distrust(why error) {
	t.mu.Lock()
	gen := t.gen
	t.mu.Unlock()
	if gen != nil {
		t.condemned(gen, why)
	}
}

// noteLive remembers that the library has shown a key that it did not show before: views need not be compared.
func (t *Token) noteLive(old, read *table) {
	for _, key := range read.keys {
		if !old.has(key.CKAID) {
			t.mu.Lock()
			t.swap.live = true
			t.mu.Unlock()
			return
		}
	}
}
