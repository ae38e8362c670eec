package envelope

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Rings are the ring that is written under and those that are only read. They are that one Ring in everything but Open,
// which goes to the ring that the key_id names.
//
// Concurrency: as Ring.
type Rings struct {
	*Ring
	read []*Ring
}

// NewRings puts rings together. Each has a name of its own; those that are only read are RingConfig.ReadOnly.
func NewRings(written *Ring, read ...*Ring) *Rings { return &Rings{written, read} }

// Open is Ring.Open of the ring that keyID names. ErrUnknownKey says which rings there are when it names another.
func (r *Rings) Open(ctx context.Context, keyID string, envelope []byte) ([]byte, error) {
	if len(r.read) == 0 {
		return r.Ring.Open(ctx, keyID, envelope) // which parses the key_id, once
	}
	id, _, err := ParseUsedKeyID(keyID)
	if err != nil || id.Ring == r.Name() {
		return r.Ring.Open(ctx, keyID, envelope)
	}
	i := slices.IndexFunc(r.read, func(ring *Ring) bool { return ring.Name() == id.Ring })
	if i < 0 {
		names := []string{r.Name()}
		for _, ring := range r.read {
			names = append(names, ring.Name())
		}
		return nil, fmt.Errorf("%w: it names the ring %s, and the configuration has %s", ErrUnknownKey, id.Ring, strings.Join(names, ", "))
	}
	dek, err := r.read[i].Open(ctx, keyID, envelope)
	if err != nil {
		return nil, fmt.Errorf("the read ring %s: %w", id.Ring, err)
	}
	return dek, nil
}

// HoldKey is Ring.HoldKey of the ring that id names.
func (r *Rings) HoldKey(ctx context.Context, id KeyID, day Day) (HoldKey, error) {
	for _, ring := range r.read {
		if ring.Name() == id.Ring {
			return ring.HoldKey(ctx, id, day)
		}
	}
	return r.Ring.HoldKey(ctx, id, day)
}

// Views are what the rings look like at this moment (Advance), the one that is written under first.
func (r *Rings) Views() []View {
	views := r.Ring.Views()
	for _, ring := range r.read {
		views = append(views, ring.Advance())
	}
	return views
}
