package envelope

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Exercise seals and opens on every token that can be reached: with the current key each time, and once
// in a token's generation with each key that is to become current. It is the probe behind Status: nil
// means that the current key worked on a token just now.
//
// With no key proven yet, the newest that works is enough. Where tokens differ in that (one lacks the newest, or
// cannot use it), the older ones are tried too: there may be one that works on all.
//
// A token that works wrongly while another works well is distrusted (Distruster): it serves no more until it has proven
// itself again. Errors: what View.Problem says when there is no current key; ErrSelfTest when no other token than one
// that works wrongly is left; ErrUnavailable and its like when no token could be asked.
func (r *Ring) Exercise(ctx context.Context) error {
	if r.cfg.ReadOnly {
		return r.exerciseEach(ctx)
	}
	errs := r.exerciseOnAll(ctx, false)
	view := r.Advance()
	if view.Current == nil && errors.Is(view.Problem, ErrNotProven) {
		r.exerciseOnAll(ctx, true)
		errs = r.exerciseOnAll(ctx, false)
		view = r.Advance()
	}
	if view.Current == nil {
		return errors.Join(append([]error{view.Problem}, errs...)...)
	}
	if !slices.Contains(errs, nil) {
		return errors.Join(errs...) // the only token there is goes on with what it can do: Decrypt, perhaps
	}
	for i, token := range r.tokens.Members() {
		if d, ok := token.(Distruster); ok && errors.Is(errs[i], ErrSelfTest) {
			d.Distrust(errs[i])
		}
	}
	return nil
}

// exerciseEach is Exercise of a ring that is only read: nil means that every key works on a token that can be reached.
func (r *Ring) exerciseEach(ctx context.Context) error {
	errs := r.exerciseOnAll(ctx, true)
	view := r.Advance()
	problems := []error{view.Problem}
	for i := range view.Versions {
		if v := &view.Versions[i]; v.State != Refused && !v.Works {
			problems = append(problems, fmt.Errorf("%w: %s works on no token that can be reached", ErrNotProven, v.ID))
		}
	}
	if errors.Join(problems...) == nil {
		return nil
	}
	return errors.Join(append(problems, errs...)...)
}

// exerciseOnAll gives the errors of exerciseOn, by token.
func (r *Ring) exerciseOnAll(ctx context.Context, thorough bool) []error {
	members := r.tokens.Members()
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, token := range members {
		wg.Go(func() { errs[i] = r.exerciseOn(ctx, token, thorough) })
	}
	wg.Wait()
	return errs
}

// exerciseOn proves on one token what Exercise says. thorough: without a current key, one that works is not enough.
// The error is that of the current key.
func (r *Ring) exerciseOn(ctx context.Context, token Token, thorough bool) error {
	generation := token.Generation()
	if generation == 0 {
		return problemOf(token)
	}
	view := r.Advance()
	served := 0
	for served < len(view.Versions) && view.Versions[served].State != Refused {
		served++
	}
	// Newest first: with no key proven yet, the first that works is enough to go on with.
	var failure error
	for i := served - 1; i >= 0; i-- {
		v := &view.Versions[i]
		isCurrent := view.Current != nil && v.ID == view.Current.ID
		// The earliest stands in when all are in the future.
		standsIn := view.Current == nil && (i == 0 || !v.Activation.After(r.cfg.Now()))
		if !isCurrent && r.isProven(v.ID, token.Name(), generation) {
			if standsIn && !thorough {
				return nil
			}
			continue
		}
		err := Prove(ctx, token, r.cfg.Profile, v.ID)
		r.noteProof(v.ID, token.Name(), generation, err)
		switch {
		case isCurrent:
			if err == nil {
				r.activated(v.ID)
			}
			return wrapToken(token, v.ID, err)
		case err == nil && standsIn && !thorough:
			return nil
		case isHSMAway(err):
			return wrapToken(token, v.ID, err)
		case err != nil && view.Current == nil:
			failure = wrapToken(token, v.ID, err)
		}
	}
	if failure == nil && view.Current == nil {
		failure = view.Problem
	}
	return failure
}

// problemOf is why a token without a generation cannot be used; it may have come back in between.
func problemOf(token Token) error {
	if err := token.Problem(); err != nil {
		return err
	}
	return fmt.Errorf("token %s: %w: it has only just been connected", token.Name(), ErrUnavailable)
}

func wrapToken(token Token, id KeyID, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("exercising %s on token %s: %w", id, token.Name(), err)
}

func (r *Ring) isProven(id KeyID, token string, generation uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proven[proofKey{id, token}] == proof{generation, true}
}

// noteProof keeps what an exercise showed. A token that was merely out of reach proves nothing either way.
func (r *Ring) noteProof(id KeyID, token string, generation uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !isHSMAway(err) {
		r.proven[proofKey{id, token}] = proof{generation, err == nil}
	}
}
