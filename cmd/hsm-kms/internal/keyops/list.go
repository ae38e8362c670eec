package keyops

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
)

// Listing is every version of the ring.
type Listing struct {
	envelope.View
	Cluster string // that the ring belongs to; empty: none says it
}

// List reads the ring from every token. A listing may have a finding beside it; without a listing the ring could not be read.
func List(ctx context.Context, a *app.Context) (*Listing, error) {
	in, err := a.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Stop()
	exerciseErr := in.Ring.Exercise(ctx) // it says which version is current
	list := &Listing{View: in.Ring.Advance()}
	var clusterErr error
	list.Cluster, clusterErr = clusterOf(ctx, in)
	if problems := errors.Join(in.Problems...); problems != nil {
		return list, app.Finding(fmt.Errorf("not every token could be read: %w", problems))
	}
	if err := cmp.Or(list.Problem, exerciseErr); err != nil && !errors.Is(err, envelope.ErrRingEmpty) {
		return list, app.Finding(err)
	}
	if list.Duplicates != nil {
		a.Warn(list.Duplicates)
	}
	return list, clusterErr
}
