package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// Keys implements envelope.Token. It reads the ring on the admin session and replaces the table of the
// present generation.
func (t *Token) Keys(ctx context.Context) ([]envelope.Key, error) {
	limited, cancel := context.WithTimeoutCause(ctx, t.cfg.CallTimeout, errAbandoned)
	defer cancel()
	gen, err := t.ready(limited)
	if err != nil {
		return nil, err
	}
	var keys []envelope.Key
	err = t.onAdmin(ctx, "reading the ring", gen, func(api p11.API) error {
		reader := t.reader(api, gen.slot, gen.admin)
		old := gen.table.Load()
		read, err := reader.read(old)
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
