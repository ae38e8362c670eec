package metrics

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// maxCallSeries bounds the label sets of HSM calls. A module chooses its result codes (vendors have 2^31 of
// their own), so what comes after these is counted under the result "other".
const maxCallSeries = 512

type callKey struct{ token, function, result string }

type callSeries struct {
	count prometheus.Counter
	took  prometheus.Observer
}

// calls counts HSM calls. The series in use are in a map that is replaced, never changed: to look one up takes
// no lock and, unlike sync.Map with its interface keys, no allocation.
type calls struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	known    atomic.Pointer[map[callKey]callSeries]
	mu       sync.Mutex // for adding to known
}

func (c *calls) register(r prometheus.Registerer) {
	c.total = counterVec("hsm_calls_total", "PKCS#11 calls by token, function and result (a CKR name, or abandoned).", "token", "function", "result")
	c.duration = histogramVec("hsm_call_duration_seconds", "How long PKCS#11 calls took, by token and function.", "token", "function")
	c.known.Store(&map[callKey]callSeries{})
	r.MustRegister(c.total, c.duration)
}

var _ envelope.Observer = (*Metrics)(nil)

// HSMCall implements envelope.Observer.
func (m *Metrics) HSMCall(token, function, result string, took time.Duration) {
	key := callKey{token, function, result}
	s, ok := (*m.calls.known.Load())[key]
	if !ok {
		s = m.calls.add(key)
	}
	s.count.Inc()
	s.took.Observe(took.Seconds())
}

// add makes the series of key, or that of "other" when there are too many.
func (c *calls) add(key callKey) callSeries {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := *c.known.Load()
	if s, ok := known[key]; ok {
		return s // added by another goroutine meanwhile
	}
	if len(known) >= maxCallSeries {
		key.result = "other"
		if s, ok := known[key]; ok {
			return s
		}
	}
	s := callSeries{
		count: c.total.WithLabelValues(key.token, key.function, key.result),
		took:  c.duration.WithLabelValues(key.token, key.function),
	}
	if len(known) < 2*maxCallSeries { // tokens and functions are few: "other" cannot reach it
		known = maps.Clone(known)
		known[key] = s
		c.known.Store(&known)
	}
	return s
}
