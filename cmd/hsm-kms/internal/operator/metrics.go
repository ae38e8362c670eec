package operator

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
)

const metricsPrefix = "hsm_kms_operate_" // apart from the plugin's: alerts and dashboards must not take one for the other

// figures is what Prometheus sees. The counters may be used from any number of goroutines; Operator.mu guards the rest, which
// is of the leader but for published.
type figures struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	actions   *prometheus.CounterVec
	published time.Time // when the Lease of this node was written last
	status    *Status   // nil: it does not lead, or has not shown anything yet
	next      time.Time // of status; zero: there is none
	ready     int       // nodes
	expected  int
	pass      time.Time // when the last one ended
	failed    time.Time // when something failed last
}

// measure makes the registry and the counters.
func (o *Operator) measure() {
	counter := func(name, help string, label ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, label)
	}
	f := &o.figures
	f.registry = prometheus.NewRegistry()
	f.requests = counter("api_requests_total", "Requests to API servers, by class of the answer.", "code")
	f.actions = counter("actions_total", "Actions of the leader, by how they went.", "action", "result")
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: metricsPrefix + "info", Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": o.cfg.Version, "node": o.cfg.Node, "ring": o.cfg.Ring},
	})
	info.Set(1)
	f.registry.MustRegister(f.requests, f.actions, info, o.collector())
}

// answered counts a request; status 0: no answer came.
func (f *figures) answered(status int) {
	class := "none"
	if status > 0 {
		class = strconv.Itoa(status/100) + "xx"
	}
	f.requests.WithLabelValues(class).Inc()
}

// acted counts an action. What a person has to see to is found, not failed.
func (o *Operator) acted(action state.Action, err error) {
	result := "done"
	switch {
	case o.failed != nil:
		result = "failed"
	case err != nil:
		result = "found"
	}
	o.figures.actions.WithLabelValues(string(action), result).Inc()
}

// gauges are read at a scrape, which asks nobody.
type gauges struct {
	o     *Operator
	descs map[string]*prometheus.Desc
}

func (o *Operator) collector() *gauges {
	g := &gauges{o: o, descs: map[string]*prometheus.Desc{}}
	for name, help := range map[string]string{
		"leading":                              "Whether this instance leads.",
		"published_timestamp_seconds":          "When this instance published last what its plugin says; 0: not yet.",
		"certificate_expiry_timestamp_seconds": "When the client certificate of this instance ends.",
		"state_since_timestamp_seconds":        "Since when the rotation is in its state.",
		"next_step_timestamp_seconds":          "When the next step is due.",
		"nodes_ready":                          "Nodes that are known and whose plugin is well.",
		"nodes_expected":                       "Nodes that are expected.",
		"objects_left":                         "Objects that are not under the current key.",
		"retirable_keys":                       "Keys that a person may retire.",
		"last_pass_timestamp_seconds":          "When the last pass ended; 0: none yet.",
		"last_error_timestamp_seconds":         "When an action or a pass failed last; 0: never.",
	} {
		g.descs[name] = prometheus.NewDesc(metricsPrefix+name, help, nil, nil)
	}
	g.descs["state"] = prometheus.NewDesc(metricsPrefix+"state", "1 for the state of the rotation, 0 for the others.", []string{"state"}, nil)
	return g
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	send := func(name string, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(g.descs[name], prometheus.GaugeValue, value, labels...)
	}
	truth := func(is bool) float64 {
		if is {
			return 1
		}
		return 0
	}
	g.o.mu.Lock()
	defer g.o.mu.Unlock()
	f, leads := &g.o.figures, g.o.lead.ctx != nil
	send("leading", truth(leads))
	send("published_timestamp_seconds", unixSeconds(f.published))
	if ends := g.o.self.CertificateEnds; !ends.IsZero() {
		send("certificate_expiry_timestamp_seconds", unixSeconds(ends))
	}
	if !leads {
		return
	}
	send("last_pass_timestamp_seconds", unixSeconds(f.pass))
	send("last_error_timestamp_seconds", unixSeconds(f.failed))
	if f.status == nil {
		return
	}
	for _, name := range state.Names() {
		send("state", truth(f.status.State == name), string(name))
	}
	send("state_since_timestamp_seconds", unixSeconds(f.status.Since.Time))
	if !f.next.IsZero() {
		send("next_step_timestamp_seconds", unixSeconds(f.next))
	}
	send("nodes_ready", float64(f.ready))
	send("nodes_expected", float64(f.expected))
	send("objects_left", float64(f.status.ObjectsLeft))
	send("retirable_keys", float64(len(f.status.Retirable)))
}

func unixSeconds(at time.Time) float64 {
	if at.IsZero() {
		return 0
	}
	return float64(at.UnixMilli()) / 1000
}
