package measure

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := Median(tc.values); got != tc.want {
			t.Errorf("median of %v = %v, want %v", tc.values, got, tc.want)
		}
	}
}

func TestDriveMakesTheCallsAskedFor(t *testing.T) {
	t.Parallel()
	var calls, atOnce, most atomic.Int64
	s, err := Drive(t.Context(), Load{Clients: 4, Ops: 1000}, func(int, int) error {
		calls.Add(1)
		if n := atOnce.Add(1); n > most.Load() {
			most.Store(n)
		}
		atOnce.Add(-1)
		return nil
	})
	if err != nil || s.Ops != 1000 || calls.Load() != 1000 || most.Load() > 4 {
		t.Errorf("%d in the sample, %d calls, %d at once: %v", s.Ops, calls.Load(), most.Load(), err)
	}
	broken := errors.New("broken")
	_, err = Drive(t.Context(), Load{Clients: 4, Time: time.Hour}, func(_, call int) error {
		if call == 10 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("err = %v, want the call's own", err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		l     *Limit
		value float64
		keeps bool
	}{
		{AtMost(2), 2, true}, {AtMost(2), 2.1, false}, {Below(2), 2, false}, {Below(2), 1.9, true}, {AtLeast(2), 2, true}, {AtLeast(2), 1.9, false},
	} {
		if got := tc.l.keeps(tc.value); got != tc.keeps {
			t.Errorf("%v %s %v is %v", tc.value, tc.l.sign, tc.l.bound, got)
		}
	}
}
