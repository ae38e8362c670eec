package envelope

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Seal wraps dek under the key id, which Advance named. Errors: ErrDEKSize, ErrUnknownKey when the ring
// holds no such key (any more), ErrUnavailable before it was read, and those of Token.
func (r *Ring) Seal(ctx context.Context, id KeyID, dek []byte) ([]byte, error) {
	if !r.holds(id) {
		return nil, r.unknown(id)
	}
	envelope, err := SealDEK(ctx, r.tokens, r.cfg.Profile, id, dek)
	if err != nil {
		return nil, err
	}
	r.activated(id)
	return envelope, nil
}

// Open unwraps an envelope under the key that keyID names: that one and no other is tried. What was sealed in a hold has the
// profile Hold and K/hold, and nothing else has either. The caller wipes the DEK. An unknown key_id causes one re-read of
// the ring, at most one a second, and then has tokens look again
// whose library may not show it (Seeker). Errors:
// ErrMalformed, ErrUnauthentic, ErrUnknownKey with what the ring does hold, and those of Token.
func (r *Ring) Open(ctx context.Context, keyID string, envelope []byte) ([]byte, error) {
	e, err := Parse(envelope)
	if err != nil {
		return nil, err
	}
	id, hold, err := ParseUsedKeyID(keyID)
	if err != nil {
		return nil, err
	}
	if hold != (e.Profile == Hold) {
		return nil, fmt.Errorf("%w: its profile is %s; key_ids that end in %s, and no others, are for %s", ErrMalformed, e.Profile, holdSuffix, Hold)
	}
	if id.Ring != r.cfg.Name {
		return nil, fmt.Errorf("%w: it names the ring %s, this one is %s", ErrUnknownKey, id.Ring, r.cfg.Name)
	}
	if !r.holds(id) {
		if err := r.refreshOnDemand(ctx); err != nil {
			return nil, err
		}
		if !r.holds(id) {
			if err := r.seek(ctx, id); err != nil {
				return nil, err
			}
		}
		if !r.holds(id) {
			return nil, r.unknown(id)
		}
	}
	dek, err := OpenDEK(ctx, r.tokens, r.cfg.Profile, id, envelope)
	if err != nil {
		return nil, err
	}
	r.activated(id)
	return dek, nil
}

// HoldKey derives the hold key of a day from a key of the ring (DeriveHoldKey). Errors: those of DeriveHoldKey, and of Seal.
func (r *Ring) HoldKey(ctx context.Context, id KeyID, day Day) (HoldKey, error) {
	if !r.holds(id) {
		return HoldKey{}, r.unknown(id)
	}
	return DeriveHoldKey(ctx, r.tokens, r.cfg.Profile, id, day)
}

// Views is Advance, of this ring alone.
func (r *Ring) Views() []View { return []View{r.Advance()} }

func (r *Ring) holds(id KeyID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, found := slices.BinarySearchFunc(r.versions, id, func(v Version, id KeyID) int { return compareIDs(v.ID, id) })
	return found
}

// refreshOnDemand re-reads the ring unless that was done, or tried, within the last second. A ring that could
// not be read cannot say that a key is unknown: its error is the HSM's.
func (r *Ring) refreshOnDemand(ctx context.Context) error {
	if err := r.lockRefresh(ctx); err != nil {
		return err
	}
	defer r.unlockRefresh()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("waiting to re-read the key ring %s: %w", r.cfg.Name, err)
	}
	now := r.cfg.Now()
	recently := func(t time.Time) bool { return now.Sub(t).Abs() < onDemandInterval }
	r.mu.Lock()
	read := r.everRead && recently(r.lastRead)
	r.mu.Unlock()
	switch {
	case read:
		return nil
	case r.demandErr != nil && recently(r.demanded):
		return r.demandErr
	}
	err := r.refreshLocked(ctx)
	if ctx.Err() == nil { // a caller who gave up does not speak for those who come after
		r.demandErr, r.demanded = err, now
	}
	return err
}

func errUnread() error { return fmt.Errorf("%w: the key ring has not been read yet", ErrUnavailable) }

// namedInError bounds how many key_ids an error names.
const namedInError = 8

// unknown says which key_id is not there, and what is. The same version with another fingerprint is said
// plainly: some token holds different material under one label and CKA_ID.
func (r *Ring) unknown(id KeyID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.everRead {
		return errUnread() // what it holds is not known: a key must not be called missing for that
	}
	for _, v := range r.refused {
		if v.ID == id {
			return fmt.Errorf("%w: %s %w: %s", ErrUnknownKey, id, ErrKeyRefused, v.Refused)
		}
	}
	var held []string
	for i := len(r.versions) - 1; i >= 0; i-- {
		v := &r.versions[i]
		if v.ID.Version == id.Version {
			return fmt.Errorf("%w: %s; the HSM holds that version with other key material: %s", ErrUnknownKey, id, v.ID)
		}
		held = append(held, v.ID.String())
	}
	if len(held) == 0 {
		return fmt.Errorf("%w: %s; the ring %s is empty", ErrUnknownKey, id, r.cfg.Name)
	}
	more := ""
	if len(held) > namedInError {
		more = fmt.Sprintf(" and %d more", len(held)-namedInError)
		held = held[:namedInError]
	}
	return fmt.Errorf("%w: %s; the ring holds %s%s", ErrUnknownKey, id, strings.Join(held, ", "), more)
}
