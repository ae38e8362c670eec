package measure

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Load is how something is exercised: by so many clients, each with one call at a time, for so long or so many calls.
type Load struct {
	Clients int           `json:"clients"`
	Time    time.Duration `json:"time"` // 0: as long as Ops takes
	Ops     int           `json:"ops"`  // 0: as many as fit into Time
}

// Sample is what came of a load.
type Sample struct {
	Ops     int           `json:"ops"`
	Elapsed time.Duration `json:"elapsed"`
	P50     time.Duration `json:"p50"`
	P99     time.Duration `json:"p99"`
}

// Rate is calls per second.
func (s Sample) Rate() float64 { return float64(s.Ops) / s.Elapsed.Seconds() }

// Drive puts the load on do, which is told the client (from 0) and the number of the call (from 0, over all clients).
// It ends at the first error, or when ctx does.
func Drive(ctx context.Context, l Load, do func(client, call int) error) (Sample, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var next atomic.Int64
	took := make([][]time.Duration, l.Clients)
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
				took[client] = append(took[client], ended.Sub(begun))
				begun = ended
			}
		})
	}
	clients.Wait()
	elapsed := time.Since(start)
	if ctx.Err() != nil {
		return Sample{}, context.Cause(ctx)
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return Sample{Ops: len(all), Elapsed: elapsed, P50: Quantile(all, 0.50), P99: Quantile(all, 0.99)}, nil
}

// Quantile is the smallest of the sorted values that at least the share q of them does not exceed; 0 of none.
func Quantile[T any](sorted []T, q float64) T {
	if len(sorted) == 0 {
		var zero T
		return zero
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// Median is that of any order of values; with an even number of them the mean of the middle two.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
