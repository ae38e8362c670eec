package hsm

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	keys, err := t.keysOf(ctx, gen)
	if !gen.ended() {
		return keys, err
	}
	// It was replaced meanwhile: the next one may show more, and its worker has not ended.
	if gen, err = t.ready(limited); err != nil {
		return nil, err
	}
	return t.keysOf(ctx, gen)
}

// keysOf is Keys on one connection.
func (t *Token) keysOf(ctx context.Context, gen *generation) ([]envelope.Key, error) {
	keys := gen.firstReading()
	if keys != nil {
		return keys, nil
	}
	err := t.onAdmin(ctx, "reading the ring", gen, func(api p11.API) error {
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
		t.noteShown(gen, old, read)
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

// noteShown remembers what the token shows, for the next connection, and whether the library has shown a key that it did not
// show before: views need not be compared then. An object that said nothing of itself before is not such a key.
func (t *Token) noteShown(gen *generation, old, read *table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gen == gen { // a key that says nothing of itself now is still the one that it was
		known := maps.Clone(t.shown.byID)
		maps.Copy(known, read.byID)
		t.shown = &table{byID: known}
	}
	for handle, held := range read.byHandle {
		if held.key.CKAID != nil && !old.has(held.key.CKAID) && old.byHandle[handle] == nil {
			t.swap.live = true
		}
	}
}
