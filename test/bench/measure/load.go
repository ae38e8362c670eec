package measure

import (
	"context"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/load"
)

// Load is how something is exercised.
type Load = load.Load

// Sample is what came of a load.
type Sample struct {
	Ops     int           `json:"ops"`
	Elapsed time.Duration `json:"elapsed"`
	P50     time.Duration `json:"p50"`
	P99     time.Duration `json:"p99"`
}

// Rate is calls per second.
func (s Sample) Rate() float64 { return float64(s.Ops) / s.Elapsed.Seconds() }

// Drive puts the load on do (load.Drive) and sums up what came of it.
func Drive(ctx context.Context, l Load, do func(client, call int) error) (Sample, error) {
	took, elapsed, err := load.Drive(ctx, l, do)
	if err != nil {
		return Sample{}, err
	}
	slices.Sort(took)
	return Sample{Ops: len(took), Elapsed: elapsed, P50: load.Quantile(took, 0.50), P99: load.Quantile(took, 0.99)}, nil
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
