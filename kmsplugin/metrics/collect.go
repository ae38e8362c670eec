package metrics

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// collector asks for values at a scrape. collect must not call the HSM: a scrape is not a reason to.
type collector struct {
	descriptions []*prometheus.Desc
	collect      func(ch chan<- prometheus.Metric)
}

// describe adds a metric.
func (c *collector) describe(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
	c.descriptions = append(c.descriptions, d)
	return d
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descriptions {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) { c.collect(ch) }

func sendGauge(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func sendCounter(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
}

func sendBool(ch chan<- prometheus.Metric, d *prometheus.Desc, value bool, labels ...string) {
	number := 0.0
	if value {
		number = 1
	}
	sendGauge(ch, d, number, labels...)
}

func unixSeconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

// ObserveRing adds what the key ring looks like: view is envelope.Ring.Advance, which asks no HSM. Call it once.
func (m *Metrics) ObserveRing(view func() envelope.View) {
	m.view.Store(&view)
	c := &collector{}
	var (
		versions   = c.describe("ring_versions", "Key versions of the ring, by state.", "state")
		ready      = c.describe("ring_pending_ready", "Pending key versions that this process has sealed and opened with on every token of the configuration.")
		activation = c.describe("ring_next_activation_timestamp_seconds", "When the next pending key version becomes current; absent: none is pending.")
		deferred   = c.describe("ring_deferred", "1: a key version is due and held back until it is proven on every token of the configuration.")
		until      = c.describe("ring_deferred_until_timestamp_seconds", "When the version that is held back becomes current at the latest; absent: none is, or there is no such time.")
		problem    = c.describe("ring_problem", "1: there is no current key, or something is wrong although there is one.")
		lastRead   = c.describe("ring_last_refresh_timestamp_seconds", "When the ring was last read from a token; 0: never.")
		current    = c.describe("current_key_info", "Always 1; the label names the current key. Absent: there is none.", "key_id")
		missing    = c.describe("current_key_missing", "1: the token lacks the current key, or cannot use it, as it was last seen. Absent: there is no current key.", "token")
		since      = c.describe("current_key_activation_timestamp_seconds", "Activation time of the current key; absent when it has none (a key made elsewhere).")
		sealed     = c.describe("seals_total", "Encrypt requests served since the process began, by key of the ring.", "key_id")
	)
	c.collect = func(ch chan<- prometheus.Metric) {
		v := view()
		tally := tally(v)
		for state, n := range tally.byState {
			sendGauge(ch, versions, float64(n), string(state))
		}
		sendGauge(ch, ready, float64(tally.ready))
		if !tally.next.IsZero() {
			sendGauge(ch, activation, unixSeconds(tally.next))
		}
		sendBool(ch, deferred, v.Deferred != nil)
		if v.Deferred != nil && !v.Deferred.HeldUntil().IsZero() {
			sendGauge(ch, until, unixSeconds(v.Deferred.HeldUntil()))
		}
		sendBool(ch, problem, v.Problem != nil)
		read := 0.0
		if !v.LastRead.IsZero() {
			read = unixSeconds(v.LastRead)
		}
		sendGauge(ch, lastRead, read)
		if v.Current != nil {
			lacking := v.Missing()
			for _, token := range v.Tokens {
				number := 0.0
				if slices.Contains(lacking, token) {
					number = 1
				}
				sendGauge(ch, missing, number, token)
			}
			sendGauge(ch, current, 1, v.Current.ID.String())
			if !v.Current.Activation.IsZero() {
				sendGauge(ch, since, unixSeconds(v.Current.Activation))
			}
		}
		for id := range tally.served {
			sendCounter(ch, sealed, float64(m.seals.Of(id)), id)
		}
	}
	m.registry.MustRegister(c)
}

// counts is a ring in numbers.
type counts struct {
	byState map[envelope.State]int
	ready   int             // pending and ready
	next    time.Time       // earliest activation of a pending one; zero: none
	served  map[string]bool // key_ids, each once: a ring can hold a key twice
}

func tally(v envelope.View) counts {
	c := counts{
		byState: map[envelope.State]int{envelope.Pending: 0, envelope.Current: 0, envelope.Retained: 0, envelope.Refused: 0},
		served:  map[string]bool{},
	}
	for i := range v.Versions {
		version := &v.Versions[i]
		c.byState[version.State]++
		if version.State != envelope.Refused {
			c.served[version.ID.String()] = true
		}
		if version.State != envelope.Pending {
			continue
		}
		if version.Ready {
			c.ready++
		}
		if c.next.IsZero() || version.Activation.Before(c.next) {
			c.next = version.Activation
		}
	}
	return c
}

// sessionCounter is a token that tells how many sessions it has open. It must not block.
type sessionCounter interface{ Sessions() int }

// nonceCounter is a token that tells how many random nonces it was given for each key of the ring. It must not block.
type nonceCounter interface {
	Nonces() map[envelope.KeyID]uint64
}

// workerCounter is a token that reports on its worker processes: how many run, the memory that is resident in them (bytes),
// how many were started, and how many ended by themselves. It must not block.
type workerCounter interface {
	Workers() (running int, resident, started, died uint64)
}

// ObserveTokens adds the state of each token, by the name of the ring that it holds. Names come from the configuration, and are
// unique over all rings. A token that has a method Sessions() int, Nonces() or Workers() is asked for it. Call it once.
func (m *Metrics) ObserveTokens(rings map[string][]envelope.Token) {
	c := &collector{}
	var (
		up         = c.describe("token_up", "1: the token can be used.", "ring", "token")
		generation = c.describe("token_generation", "Number of the present connection to the token; 0: there is none.", "token")
		recoveries = c.describe("token_recoveries_total", "Connections made to the token after the first.", "token")
		sessions   = c.describe("token_sessions", "Sessions open on the token.", "token")
		suspended  = c.describe("token_suspended_keys", "Keys that the token cannot use just now, while it can use others.", "token")
		nonces     = c.describe("nonces_total", "Random nonces drawn for a key of the ring on this token since the process began: requests, probes and self-tests.", "token", "key_id")
		running    = c.describe("worker_processes", "Worker processes of the token that run.", "token")
		resident   = c.describe("worker_resident_memory_bytes", "Resident memory of the worker processes of the token, together.", "token")
		starts     = c.describe("worker_starts_total", "Worker processes started for the token.", "token")
		deaths     = c.describe("worker_deaths_total", "Worker processes of the token that ended by themselves.", "token")
	)
	var mu sync.Mutex              // guards highest
	highest := map[string]uint64{} // generation, by token
	more := func(ch chan<- prometheus.Metric, t envelope.Token) {
		name := t.Name()
		if s, ok := t.(sessionCounter); ok {
			sendGauge(ch, sessions, float64(s.Sessions()), name)
		}
		if w, ok := t.(workerCounter); ok {
			n, memory, started, died := w.Workers()
			sendGauge(ch, running, float64(n), name)
			sendGauge(ch, resident, float64(memory), name)
			sendCounter(ch, starts, float64(started), name)
			sendCounter(ch, deaths, float64(died), name)
		}
		if s, ok := t.(envelope.Suspender); ok {
			sendGauge(ch, suspended, float64(len(s.Suspended())), name)
		}
		if n, ok := t.(nonceCounter); ok {
			for id, count := range n.Nonces() {
				sendCounter(ch, nonces, float64(count), name, id.String())
			}
		}
	}
	c.collect = func(ch chan<- prometheus.Metric) {
		mu.Lock()
		defer mu.Unlock()
		for ring, tokens := range rings {
			for _, t := range tokens {
				name, number := t.Name(), t.Generation()
				highest[name] = max(highest[name], number)
				sendGauge(ch, up, float64(min(number, 1)), ring, name)
				sendGauge(ch, generation, float64(number), name)
				sendCounter(ch, recoveries, float64(max(highest[name], 1)-1), name)
				more(ch, t)
			}
		}
	}
	m.registry.MustRegister(c)
}

// ObserveAudit adds how the audit trail fares. Call it once, and not at all when there is no trail.
func (m *Metrics) ObserveAudit(stats func() audit.Stats) {
	c := &collector{}
	var (
		sequence = c.describe("audit_sequence", "Sequence number of the last record of the audit trail.")
		failures = c.describe("audit_failures_total", "Failed attempts to write, flush or rotate the audit trail.")
		lost     = c.describe("audit_lost_operations_total", "Operations that are not in the audit trail.")
		failing  = c.describe("audit_failing", "1: the last attempt to write or flush the audit trail failed, or one has been waiting for the disk for ten seconds.")
	)
	c.collect = func(ch chan<- prometheus.Metric) {
		s := stats()
		sendGauge(ch, sequence, float64(s.Sequence))
		sendCounter(ch, failures, float64(s.Failures))
		sendCounter(ch, lost, float64(s.Lost))
		sendBool(ch, failing, s.Failing)
	}
	m.registry.MustRegister(c)
}

// keptSocket is a socket that is made again when its file is removed: socket.Listener.
type keptSocket interface {
	Listening() bool
	Renewals() uint64
}

// ObserveSocket adds whether clients can find the socket. Call it once, and not at all when somebody else made it.
func (m *Metrics) ObserveSocket(s keptSocket) {
	c := &collector{}
	var (
		listening = c.describe("socket_listening", "1: who connects to the socket's path comes to this process.")
		renewals  = c.describe("socket_renewals_total", "How often the socket was made again because its file was removed or replaced.")
	)
	c.collect = func(ch chan<- prometheus.Metric) {
		sendBool(ch, listening, s.Listening())
		sendCounter(ch, renewals, float64(s.Renewals()))
	}
	m.registry.MustRegister(c)
}
