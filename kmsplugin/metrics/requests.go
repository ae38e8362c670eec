package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// The operations that are told apart, as kmsplugin names them; anything else is other.
const (
	status  = "Status"
	encrypt = "Encrypt"
	decrypt = "Decrypt"
	other   = "Other"
)

// usedCodes are those that the service answers with. Each has its series from the start, so that the first
// failure is a rise from zero and not a new series, which rate() does not see.
func usedCodes() []codes.Code {
	return []codes.Code{codes.OK, codes.InvalidArgument, codes.NotFound, codes.Unavailable, codes.ResourceExhausted,
		codes.DeadlineExceeded, codes.FailedPrecondition, codes.Internal, codes.Canceled, codes.Unimplemented}
}

// operation is one operation's series.
type operation struct {
	byCode [codes.Unauthenticated + 1]prometheus.Counter
	took   prometheus.Observer
}

// requests counts what the service does.
type requests struct {
	status, encrypt, decrypt, other operation

	probes       *prometheus.CounterVec
	probeOK      prometheus.Counter
	probeFailed  prometheus.Counter
	probeTook    prometheus.Histogram
	probed       prometheus.Gauge
	probedWell   prometheus.Gauge
	unknownKeys  prometheus.Counter
	refusedKeys  prometheus.Counter
	refusedPeers prometheus.Counter
	dropped      prometheus.Counter
}

func (q *requests) register(r prometheus.Registerer) {
	total := counterVec("operations_total", "KMS requests answered, by operation and gRPC code.", "operation", "code")
	took := histogramVec("operation_duration_seconds", "How long KMS requests took, by operation.", "operation")
	for name, op := range map[string]*operation{status: &q.status, encrypt: &q.encrypt, decrypt: &q.decrypt, other: &q.other} {
		op.took = took.WithLabelValues(name)
		rest := total.WithLabelValues(name, other)
		for i := range op.byCode {
			op.byCode[i] = rest
		}
		for _, code := range usedCodes() {
			op.byCode[code] = total.WithLabelValues(name, code.String())
		}
	}
	q.probes = counterVec("probes_total", "Background probes (seal and open with the current key), by result: ok or failed.", "result")
	q.probeOK, q.probeFailed = q.probes.WithLabelValues("ok"), q.probes.WithLabelValues("failed")
	q.probeTook = prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: "probe_duration_seconds",
		Help: "How long background probes took.", Buckets: latencyBuckets()})
	q.probed = prometheus.NewGauge(prometheus.GaugeOpts(gauge("probe_last_timestamp_seconds", "When the last background probe ended; 0: none has.")))
	q.probedWell = prometheus.NewGauge(prometheus.GaugeOpts(gauge("probe_last_success_timestamp_seconds", "When the last good background probe ended; 0: none has.")))
	q.unknownKeys = counter("unknown_key_requests_total", "Decrypt requests for a key_id that the ring does not hold.")
	q.refusedKeys = counter("refused_key_requests_total", "Decrypt requests for a key that is on the token and not served.")
	q.refusedPeers = counter("peers_refused_total", "Connections of processes that may not connect.")
	q.dropped = counter("connections_dropped_total", "Connections dropped because there were too many, or because half-sent requests held too much.")
	r.MustRegister(total, took, q.probes, q.probeTook, q.probed, q.probedWell, q.unknownKeys, q.refusedKeys, q.refusedPeers, q.dropped)
}

// Answered counts a request of the named operation that was answered with code.
func (m *Metrics) Answered(name string, code codes.Code, took time.Duration) {
	op := &m.requests.other
	switch name {
	case status:
		op = &m.requests.status
	case encrypt:
		op = &m.requests.encrypt
	case decrypt:
		op = &m.requests.decrypt
	}
	if int(code) >= len(op.byCode) {
		code = codes.Unknown
	}
	op.byCode[code].Inc()
	op.took.Observe(took.Seconds())
}

// KeyUsed counts what an Encrypt or Decrypt says of a key: seals per key, and requests for keys that are not
// there or not served. keyID is the peer's word in a Decrypt: it is compared, never kept.
func (m *Metrics) KeyUsed(name, keyID string, code codes.Code) {
	switch {
	case name == encrypt && code == codes.OK:
		m.seals.Add(keyID)
	case name == decrypt && code == codes.NotFound:
		if m.isRefused(keyID) {
			m.requests.refusedKeys.Inc()
		} else {
			m.requests.unknownKeys.Inc()
		}
	case name == decrypt:
		m.ringUsed(keyID, code)
	}
}

func (m *Metrics) isRefused(keyID string) bool {
	id, _, err := envelope.ParseUsedKeyID(keyID)
	if err != nil {
		return false
	}
	for _, view := range m.views() {
		for _, v := range view().Versions {
			if v.ID == id && v.State == envelope.Refused {
				return true
			}
		}
	}
	return false
}

// views are those of all rings.
func (m *Metrics) views() (all []func() envelope.View) {
	if view := m.view.Load(); view != nil {
		all = append(all, *view)
	}
	if known := m.read.Load(); known != nil {
		for _, r := range known.rings {
			all = append(all, r.View)
		}
	}
	return all
}

// Probed counts a background probe that ended just now, well if err is nil.
func (m *Metrics) Probed(err error, took time.Duration) {
	m.requests.probeTook.Observe(took.Seconds())
	m.requests.probed.SetToCurrentTime()
	if err != nil {
		m.requests.probeFailed.Inc()
		return
	}
	m.requests.probeOK.Inc()
	m.requests.probedWell.SetToCurrentTime()
}

// PeerRefused counts a connection of a process that may not connect.
func (m *Metrics) PeerRefused() { m.requests.refusedPeers.Inc() }

// ConnectionDropped counts a connection that had to go because there were too many.
func (m *Metrics) ConnectionDropped() { m.requests.dropped.Inc() }
