// Package load puts a load on something and tells how long each call took: for hsm-kms bench and for the benchmark programs
// of test, so that both mean the same by clients, rate and quantile.
//
// It depends on no other package. A Load starts its own goroutines and waits for them.
package load

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Load is how something is exercised: by so many clients, each with one call at a time, for so long or so many calls,
// whichever ends first.
type Load struct {
	Clients int           `json:"clients"`
	Time    time.Duration `json:"time"` // 0: as long as Ops takes
	Ops     int           `json:"ops"`  // 0: as many as fit into Time
}

// Drive puts the load on do, which is told the client (from 0) and the number of the call (from 0, over all clients). It
// gives how long each call took, in no order, and all of them together. It ends early at the first error, which it returns,
// and when ctx does, after the calls that are under way: it is for do to cut those short, or not.
func Drive(ctx context.Context, l Load, do func(client, call int) error) (took []time.Duration, elapsed time.Duration, err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var next atomic.Int64
	each := make([][]time.Duration, l.Clients)
	start := time.Now()
	var clients sync.WaitGroup
	for client := range l.Clients {
		clients.Go(func() {
			for begun := time.Now(); ctx.Err() == nil && (l.Time == 0 || begun.Sub(start) < l.Time); {
				call := int(next.Add(1)) - 1
				if l.Ops > 0 && call >= l.Ops {
					return
				}
				if err := do(client, call); err != nil {
					fail(err)
					return
				}
				ended := time.Now()
				each[client] = append(each[client], ended.Sub(begun))
				begun = ended
			}
		})
	}
	clients.Wait()
	elapsed = time.Since(start)
	if ctx.Err() != nil {
		return nil, elapsed, context.Cause(ctx)
	}
	return slices.Concat(each...), elapsed, nil
}

// Quantile is the smallest of the sorted values that at least the share q of them does not exceed; 0 of none.
func Quantile[T any](sorted []T, q float64) T {
	if len(sorted) == 0 {
		var zero T
		return zero
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}
