package metrics

import (
	"runtime"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/growmap"
)

const namespace = "hsm_kms"

// latencyBuckets go from a software token's call to a caller's time-out, in seconds.
func latencyBuckets() []float64 {
	return []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
}

// Metrics are all counters of one process. New makes them; the Observe methods add what is asked for at a
// scrape. It implements envelope.Observer and kmsplugin.Metrics. All methods may be called from any number of
// goroutines.
type Metrics struct {
	registry *prometheus.Registry
	calls    calls
	requests requests
	seals    growmap.Counts[string] // successful Encrypts by key_id; only keys that were current get in
	view     atomic.Pointer[func() envelope.View]
	read     atomic.Pointer[readRings]
}

// New returns the metrics of the program of that version and commit.
func New(version, commit string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	info := gauge("build_info", "Always 1; the labels say what is running.")
	info.ConstLabels = prometheus.Labels{"version": version, "commit": commit, "go_version": runtime.Version()}
	build := prometheus.NewGauge(prometheus.GaugeOpts(info))
	build.Set(1)
	m.registry.MustRegister(build,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(gauge("go_goroutines", "Goroutines.")),
			func() float64 { return float64(runtime.NumGoroutine()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts(gauge("go_threads", "Threads of the operating system that this process has made, without those of its workers.")), threads),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: namespace}),
	)
	m.calls.register(m.registry)
	m.requests.register(m.registry)
	return m
}

func threads() float64 {
	n, _ := runtime.ThreadCreateProfile(nil)
	return float64(n)
}

func gauge(name, help string) prometheus.Opts {
	return prometheus.Opts{Namespace: namespace, Name: name, Help: help}
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
}

func histogramVec(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: latencyBuckets()}, labels)
}
