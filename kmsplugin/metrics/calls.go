package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/growmap"
)

// maxCallSeries bounds the label sets of HSM calls. A module chooses its result codes (vendors have 2^31 of
// their own), so what comes after these is counted under the result "other".
const maxCallSeries = 512

type callKey struct{ token, function, result string }

type callSeries struct {
	count prometheus.Counter
	took  prometheus.Observer
}

// calls counts HSM calls.
type calls struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	known    growmap.Map[callKey, callSeries]
}

func (c *calls) register(r prometheus.Registerer) {
	c.total = counterVec("hsm_calls_total", "PKCS#11 calls by token, function and result (a CKR name, or abandoned).", "token", "function", "result")
	c.duration = histogramVec("hsm_call_duration_seconds", "How long PKCS#11 calls took, by token and function.", "token", "function")
	r.MustRegister(c.total, c.duration)
}

var _ envelope.Observer = (*Metrics)(nil)

// HSMCall implements envelope.Observer.
func (m *Metrics) HSMCall(token, function, result string, took time.Duration) {
	key := callKey{token, function, result}
	s, ok := m.calls.known.Load(key)
	if !ok {
		s = m.calls.add(key)
	}
	s.count.Inc()
	s.took.Observe(took.Seconds())
}

// add makes the series of key, or that of "other" when there are too many.
func (c *calls) add(key callKey) callSeries {
	series := func() callSeries {
		return callSeries{
			count: c.total.WithLabelValues(key.token, key.function, key.result),
			took:  c.duration.WithLabelValues(key.token, key.function),
		}
	}
	if s, ok := c.known.Add(key, maxCallSeries, series); ok {
		return s
	}
	key.result = "other"
	if s, ok := c.known.Add(key, 2*maxCallSeries, series); ok { // tokens and functions are few
		return s
	}
	return series()
}
