package load

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, tc := range []struct {
		sorted []time.Duration
		q      float64
		want   time.Duration
	}{{nil, 0.5, 0}, {[]time.Duration{7}, 0.99, 7}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred[:3], 0.5, 2}} {
		if got := Quantile(tc.sorted, tc.q); got != tc.want {
			t.Errorf("quantile of %d values at %v = %d, want %d", len(tc.sorted), tc.q, got, tc.want)
		}
	}
}
