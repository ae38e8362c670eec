package metrics

import (
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// readRing is a ring that is only read: health.Reader. Its methods must not block.
type readRing interface {
	Name() string
	Report() health.ReadRing
	View() envelope.View
}

// readRings counts what is opened under the keys of read rings.
type readRings struct {
	rings  []readRing
	opened map[string]*atomic.Uint64 // by ring; not changed after ObserveReadRings
}

// ObserveReadRings adds how the rings are that are only read. Call it once, before anything is served, and not at all when
// there is none.
func ObserveReadRings[R readRing](m *Metrics, rings []R) {
	known := &readRings{opened: map[string]*atomic.Uint64{}}
	for _, r := range rings {
		known.rings = append(known.rings, r)
		known.opened[r.Name()] = new(atomic.Uint64)
	}
	m.read.Store(known)
	c := &collector{}
	var (
		ok       = c.describe("read_ring_ok", "1: every key of the read ring works on a token that can be reached, or the ring is retiring and has none left.", "ring")
		versions = c.describe("read_ring_versions", "Key versions of the read ring that are served.", "ring")
		proven   = c.describe("read_ring_proven", "Key versions of the read ring that this process has sealed and opened with on a token that can be reached.", "ring")
		retiring = c.describe("read_ring_retiring", "1: the configuration says that the read ring is retiring.", "ring")
		lastRead = c.describe("read_ring_last_refresh_timestamp_seconds", "When the read ring was last read from a token; 0: never.", "ring")
		opened   = c.describe("read_ring_decrypts_total", "Decrypt requests that were served under keys of the read ring.", "ring")
	)
	c.collect = func(ch chan<- prometheus.Metric) {
		for _, r := range known.rings {
			is, name := r.Report(), r.Name()
			sendBool(ch, ok, is.Problem == nil, name)
			sendGauge(ch, versions, float64(is.Keys), name)
			sendGauge(ch, proven, float64(is.Proven), name)
			sendBool(ch, retiring, is.Retiring, name)
			read := 0.0
			if at := r.View().LastRead; !at.IsZero() {
				read = unixSeconds(at)
			}
			sendGauge(ch, lastRead, read, name)
			sendCounter(ch, opened, float64(known.opened[name].Load()), name)
		}
	}
	m.registry.MustRegister(c)
}

// ringUsed counts a Decrypt under a key of a read ring. keyID is the peer's word: it is compared, never kept.
func (m *Metrics) ringUsed(keyID string, code codes.Code) {
	known := m.read.Load()
	if known == nil || code != codes.OK {
		return
	}
	ring, _, _ := strings.Cut(keyID, "/")
	if n := known.opened[ring]; n != nil {
		n.Add(1)
	}
}
