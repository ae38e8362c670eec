package bench

import (
	"math"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/load"
)

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
		P50: milliseconds(load.Quantile(took, 0.50)), P99: milliseconds(load.Quantile(took, 0.99)),
		HSMCallsPerOp: rounded(float64(calls)/max(n, 1), 100),
	}
}

func milliseconds(d time.Duration) float64 {
	return rounded(float64(d)/float64(time.Millisecond), 1000)
}

// rounded is v to the nearest 1/parts: more digits would be noise.
func rounded(v, parts float64) float64 { return math.Round(v*parts) / parts }
