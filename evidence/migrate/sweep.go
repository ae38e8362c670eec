package migrate

import (
	"context"
	"errors"
	"fmt"
)

// sweep removes the canaries of a run that was killed. What it cannot remove does no harm and is said. The error is
// ErrBadAnswer.
func (p *prover) sweep(ctx context.Context, resources []*surveyed) error {
	for _, r := range resources {
		if !plantable(r) {
			continue
		}
		for _, server := range p.opts.Servers {
			old, err := server.Planted(ctx, r.Resource.Resource, p.opts.Namespace)
			if errors.Is(err, ErrUnreachable) || errors.Is(err, ErrPassing) {
				continue // another one will do
			}
			if errors.Is(err, ErrBadAnswer) {
				return fmt.Errorf("looking for the canaries of an earlier run: %s: %w", server.Name(), err)
			}
			for _, planted := range old {
				err = errors.Join(err, server.Remove(ctx, planted))
			}
			if err != nil && ctx.Err() == nil {
				p.opts.Say(fmt.Sprintf("looking for the canaries of an earlier run in namespace %s: %v", p.opts.Namespace, err))
			}
			break
		}
	}
	return nil
}
