package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// Destruction is what became of a key on one token.
type Destruction struct {
	Token   string
	Outcome Outcome
	Err     error // why the key was not destroyed; nil if it was
}

// Destroy destroys the key on every token that holds it, in the order of the configuration. It returns one Destruction
// for each of these tokens, and for each of which it is not known whether it holds the key. The error is nil only if
// the key is on no token afterwards.
//
// Every token is read first: nothing is destroyed unless all of them answer. It stops at the first token on which the
// key was not destroyed, or on which that is unknown, because the copies that are left are the way back: those are kept.
// Called again, it goes on.
func (s *Set) Destroy(ctx context.Context, id envelope.KeyID) ([]Destruction, error) {
	plan, err := s.planDestroy(ctx, id)
	all := make([]Destruction, len(plan))
	for i, p := range plan {
		all[i] = Destruction{Token: p.token.cfg.Name, Outcome: Kept, Err: err}
		if err != nil {
			continue
		}
		all[i].Outcome, all[i].Err = p.token.destroy(ctx, id, p.before)
		if all[i].Err != nil {
			all[i].Err = fmt.Errorf("token %s: destroying %s: %w", p.token.cfg.Name, id, asUnavailable(all[i].Err))
			err = all[i].Err
		}
	}
	return all, err
}

// planned is a token that holds the key, as it was read before anything was destroyed.
type planned struct {
	token  *Token
	before *ringView
}

// planDestroy reads every token. After an error it returns every token that was not found to lack the key.
func (s *Set) planDestroy(ctx context.Context, id envelope.KeyID) (plan []planned, err error) {
	for _, t := range s.tokens {
		before, lookErr := t.viewRing(ctx)
		if lookErr == nil && before.table.byID[id] == nil {
			if before.unread(id) == 0 {
				continue
			}
			lookErr = fmt.Errorf("an object with the CKA_ID of %s cannot be used, and may be that key", id)
		}
		if lookErr != nil && err == nil {
			err = fmt.Errorf("token %s: looking for %s: %w", t.cfg.Name, id, asUnavailable(lookErr))
		}
		plan = append(plan, planned{t, before})
	}
	return plan, err
}

// destroy destroys every object of that key_id. The error is nil if and only if the key is gone.
func (t *Token) destroy(ctx context.Context, id envelope.KeyID, before *ringView) (Outcome, error) {
	gen, err := t.ready(ctx)
	if err != nil {
		return Kept, err
	}
	right := &claim{}
	err = t.onAdmin(ctx, "destroying a key", gen, func(api p11.API) error {
		return t.destroyOn(api, gen, id, right)
	})
	if !right.abandon() && err != nil {
		return Kept, err
	}
	gone, lookErr := t.settle(right, gen.worker, func(ctx context.Context) (bool, error) {
		now, err := t.viewRing(ctx)
		if err != nil {
			return false, err
		}
		if now.unread(id) > before.unread(id) {
			return false, fmt.Errorf("an object with the CKA_ID of %s cannot be used, and may be that key", id)
		}
		if err := now.continues(before, id.Version); err != nil || now.table.byID[id] != nil {
			return false, err
		}
		now.gen.table.Store(now.table)
		return true, nil
	})
	switch {
	case lookErr != nil:
		return Unknown, errors.Join(err, lookErr)
	case gone:
		return Destroyed, nil
	case err == nil:
		err = errors.New("the token reports the key destroyed, and still holds it")
	}
	return Kept, err
}

// destroyOn reads the ring again first: what is destroyed was looked at a moment ago, with its fingerprint.
func (t *Token) destroyOn(api p11.API, gen *generation, id envelope.KeyID, right *claim) error {
	reader := t.reader(api, gen.slot, gen.admin)
	table, err := reader.read(nil)
	gen.admin = reader.session
	if reader.leftOpen {
		t.requireNewWorker()
	}
	if err != nil {
		return err
	}
	s, err := api.OpenSession(gen.slot, true)
	if err != nil {
		return fmt.Errorf("opening session: %w", err)
	}
	for handle, key := range table.byHandle {
		if err == nil && key.key.ID == id && key.key.Refused == "" {
			err = right.do(func() error { return api.DestroyObject(s, handle) })
		}
	}
	return errors.Join(err, closeSession(api, s))
}
