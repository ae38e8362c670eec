// Package health finds out whether the HSM can be used, apart from requests: one goroutine re-reads the key ring
// and exercises its current key, and Report answers from what that found. It decides when to
// probe and what the outcome means for Status, logs each change, and keeps the file with the last proven key_id.
//
// In short: a good probe is ok and names the current key. When the HSM is away, the key_id proven last stays for
// WriteContinuation, not ok, so that API servers can keep writing with the DEK seed they have. When the current key is
// missing or does not open what it sealed, there is no key_id at once.
//
// It depends on envelope, on problem for what an error means, and on atomicfile and hint. Health documents its locks.
package health

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Ring is what a probe needs of envelope.Ring. Refresh and Exercise ask the HSM and return by the context's deadline;
// Advance does not ask it.
type Ring interface {
	Refresh(ctx context.Context) error
	Exercise(ctx context.Context) error
	Advance() envelope.View
}

// Hold stands in for an HSM that is away: hold.Hold. Its methods may be called from any number of goroutines. Probed may ask the HSM,
// and is called for each probe, before its outcome is published; the others do not wait.
type Hold interface {
	Probed(ctx context.Context, view envelope.View, failure error)
	// Judge is what a report is with the hold.
	Judge(Report) Report
	// Holding reports whether the probe alone asks the HSM now.
	Holding() bool
	// Begun gets a value when it begins, or perhaps should: the probe is to look now.
	Begun() <-chan struct{}
}

// Defaults of Config, and the times that are not configured.
const (
	DefaultProbeInterval     = 30 * time.Second
	DefaultRefreshInterval   = 30 * time.Second
	DefaultWriteContinuation = time.Hour
	DefaultCallLimit         = 10 * time.Second

	staleAfter   = 3               // probe intervals
	holdProbe    = 5 * time.Second // between probes on hold: five good ones within 30 s end it
	firstBackOff = time.Second     // between probes while something is wrong; doubled up to the probe interval
	saveInterval = time.Minute     // between two writes of an unchanged key_id
)

// Config says how often to look, and whom to tell. The zero value of a field is its default.
type Config struct {
	Ring              Ring // required
	Hold              Hold // nil: none
	ProbeInterval     time.Duration
	RefreshInterval   time.Duration
	WriteContinuation time.Duration
	CallLimit         time.Duration // bounds one Refresh and one Exercise; at most ProbeInterval
	StateDir          string        // "": the last proven key_id is not kept
	Proven            Proven        // as LoadProven gave it
	Logger            *slog.Logger  // nil: nothing is logged
	// Probed is told of each probe: its error (nil: good) and how long it took. nil: nobody is.
	Probed func(err error, took time.Duration)
	// Random draws what the first pauses are shortened by, from 0 to n; nil: chance.
	Random func(n time.Duration) time.Duration
	// Changed is told the words and the key_id ("": none) of Report whenever they change. nil: nobody is.
	Changed func(words, keyID string)
}

// Health is the probe and its latest result. Run is called once; the other methods may be called from any number of
// goroutines, before, during and after it, and never wait.
//
// There is no lock: what Report needs is in latest and pending, which are replaced and never changed. schedule and log belong to
// Run, but for what changes says of itself; proven goes from Run to the goroutine that writes proven.json.
type Health struct {
	cfg      Config
	latest   atomic.Pointer[result]
	pending  atomic.Pointer[[]Pending]
	retained atomic.Pointer[[]envelope.KeyID]
	turned   atomic.Int64  // unix nanoseconds: when Run last came round; 0: it has not begun
	first    chan struct{} // closed after the first probe
	schedule schedule
	proven   chan Proven // holds one: proven, and not yet taken by keep
	save     func(stateDir string, proven Proven) error
	log      changes
}

// New returns a Health that has not probed yet.
func New(cfg Config) *Health {
	setDefault(&cfg.ProbeInterval, DefaultProbeInterval)
	setDefault(&cfg.RefreshInterval, DefaultRefreshInterval)
	setDefault(&cfg.WriteContinuation, DefaultWriteContinuation)
	setDefault(&cfg.CallLimit, DefaultCallLimit)
	cfg.CallLimit = min(cfg.CallLimit, cfg.ProbeInterval)
	if cfg.Random == nil {
		cfg.Random = rand.N[time.Duration]
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Health{
		cfg: cfg, first: make(chan struct{}), proven: make(chan Proven, 1), save: saveProven,
		schedule: schedule{probeEvery: cfg.ProbeInterval, refreshEvery: cfg.RefreshInterval, random: cfg.Random},
		log:      changes{logger: cfg.Logger, versions: map[string]string{}},
	}
	h.latest.Store(firstResult(cfg.Proven, time.Now()))
	return h
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// First is closed when the first probe has ended, well or badly.
func (h *Health) First() <-chan struct{} { return h.first }

// Run probes until ctx ends. Its calls into the HSM are bounded by CallLimit; a ring that breaks its promise and does
// not return leaves the result to grow stale, which Report tells.
func (h *Health) Run(ctx context.Context) {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { h.watch(ctx) })
	beside.Go(func() { h.keep(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	probed := false
	var begun <-chan struct{}
	if h.cfg.Hold != nil {
		begun = h.cfg.Hold.Begun()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-begun:
			h.schedule.within(time.Unix(0, h.turned.Load()), firstBackOff) // at once, and not more often than that
		case <-timer.C:
		}
		h.turned.Store(time.Now().UnixNano())
		h.round(ctx)
		if ctx.Err() != nil {
			return // a probe that was cut short says nothing of the HSM
		}
		if !probed {
			probed = true
			close(h.first)
		}
		timer.Reset(h.schedule.wait(time.Now()))
	}
}

// Turning is an error when Run has not come round for twice as long as a round and the pause after it can take: its calls
// into the HSM are bounded, so something else holds it, for good. It asks nobody and does not wait.
func (h *Health) Turning() error {
	began := h.turned.Load()
	longest := h.cfg.ProbeInterval + (2+settleTries)*h.cfg.CallLimit // two readings of the ring, and the tries of a probe
	age := time.Since(time.Unix(0, began))
	if began == 0 || age <= 2*longest {
		return nil
	}
	return hint.Wrap(fmt.Errorf("the probe began %s ago and has not ended", age.Round(time.Second)),
		"report it with the goroutines that SIGQUIT prints")
}
