package bench

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is so many clients, each with one operation at a time, for so long and for so many operations at most.
type load struct {
	clients int
	time    time.Duration
	most    int
}

// drive puts the load on do, which is told the number of the operation, from 0. It gives how long each took, and all of them.
// It ends early at the first error, which it returns, and when stop ends, after the operations that are under way: cut short,
// they would leave their sessions behind.
func drive(stop context.Context, l load, do func(n int) error) (took []time.Duration, elapsed time.Duration, err error) {
	stop, fail := context.WithCancelCause(stop)
	defer fail(nil)
	var next atomic.Int64
	each := make([][]time.Duration, l.clients)
	start := time.Now()
	var clients sync.WaitGroup
	for i := range l.clients {
		clients.Go(func() {
			for begun := time.Now(); stop.Err() == nil && begun.Sub(start) < l.time; {
				n := int(next.Add(1)) - 1
				if n >= l.most {
					return
				}
				if err := do(n); err != nil {
					fail(err)
					return
				}
				ended := time.Now()
				each[i] = append(each[i], ended.Sub(begun))
				begun = ended
			}
		})
	}
	clients.Wait()
	elapsed = time.Since(start)
	if stop.Err() != nil {
		return nil, elapsed, context.Cause(stop)
	}
	return slices.Concat(each...), elapsed, nil
}

// Row is one line of the result. Fields and names are a contract.
type Row struct {
	Op            string  `json:"op"`
	Clients       int     `json:"clients"`
	OpsPerSecond  float64 `json:"opsPerSecond"`
	P50           float64 `json:"p50"` // milliseconds
	P99           float64 `json:"p99"` // milliseconds
	HSMCallsPerOp float64 `json:"hsmCallsPerOp"`
}

// The values of Row.Op.
const (
	OpStart = "start" // connect, log in, read the ring
	OpSeal  = "seal"
	OpOpen  = "open"
)

// RowOf is the row of operations that took so long each and all together, with so many calls into the HSM. It sorts took.
func RowOf(op string, clients int, took []time.Duration, elapsed time.Duration, calls int64) Row {
	slices.Sort(took)
	n := float64(len(took))
	return Row{
		Op: op, Clients: clients, OpsPerSecond: rounded(n/elapsed.Seconds(), 10),
		P50: milliseconds(quantile(took, 0.50)), P99: milliseconds(quantile(took, 0.99)),
		HSMCallsPerOp: rounded(float64(calls)/max(n, 1), 100),
	}
}

// quantile is the smallest of the sorted values that at least the share q of them does not exceed; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func milliseconds(d time.Duration) float64 {
	return rounded(float64(d)/float64(time.Millisecond), 1000)
}

// rounded is v to the nearest 1/parts: more digits would be noise.
func rounded(v, parts float64) float64 { return math.Round(v*parts) / parts }
