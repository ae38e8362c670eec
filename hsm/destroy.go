package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// Destroy destroys the key on every token that holds it, in the order of the configuration, and returns the
// names of those on which it is gone. Every token must be reachable when it begins. It stops at the first
// failure; called again, it goes on.
func (s *Set) Destroy(ctx context.Context, id envelope.KeyID) (destroyed []string, err error) {
	for _, t := range s.tokens {
		if err := t.Problem(); err != nil {
			return nil, err
		}
	}
	for _, t := range s.tokens {
		held, err := t.destroy(ctx, id)
		if err != nil {
			return destroyed, err
		}
		if held {
			destroyed = append(destroyed, t.cfg.Name)
		}
	}
	return destroyed, nil
}

// destroy removes every object of that key_id from the token and looks that none is left. held: there was one.
func (t *Token) destroy(ctx context.Context, id envelope.KeyID) (held bool, err error) {
	gen, err := t.ready(ctx)
	if err != nil {
		return false, err
	}
	err = t.onControl(ctx, "destroying a key", func() {}, func(api p11.API, _ *call) error {
		if gen.ended() {
			return errStale
		}
		s, err := api.OpenSession(gen.slot, true)
		if err != nil {
			return fmt.Errorf("opening session: %w", err)
		}
		held, err = t.destroyOn(api, gen, s, id)
		return errors.Join(err, closeSession(api, s))
	})
	if err != nil {
		return false, fmt.Errorf("token %s: destroying %s: %w", t.cfg.Name, id, asUnavailable(err))
	}
	return held, nil
}

// destroyOn reads the ring anew before and after: what is destroyed was looked at a moment ago, with its
// fingerprint, and is gone in the end.
func (t *Token) destroyOn(api p11.API, gen *generation, s p11.Session, id envelope.KeyID) (held bool, err error) {
	reader := t.reader(api, gen.slot, gen.control)
	defer func() { gen.control = reader.session }()
	before, err := reader.read(nil)
	if err != nil {
		return false, err
	}
	for handle, key := range before.byHandle {
		if key.key.ID != id || key.key.Refused != "" {
			continue
		}
		held = true
		if err := api.DestroyObject(s, handle); err != nil {
			return held, err
		}
	}
	after, err := reader.read(nil)
	if err != nil {
		return held, fmt.Errorf("reading the ring after the destruction: %w", err)
	}
	gen.table.Store(after)
	if after.byID[id] != nil {
		return held, errors.New("the token reports the key destroyed, and still holds it")
	}
	return held, nil
}
