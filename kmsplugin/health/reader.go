package health

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// ReaderConfig says which read ring to keep, and how. The zero value of a field but Name and Ring is its default.
type ReaderConfig struct {
	Name            string // of the ring
	Ring            Ring   // required; envelope.RingConfig.ReadOnly
	Retiring        bool   // its keys may go, the last one too
	RefreshInterval time.Duration
	CallLimit       time.Duration // bounds one Refresh and one Exercise; at most RefreshInterval
	Logger          *slog.Logger  // nil: nothing is logged
}

// Reader keeps a ring that is only read: it re-reads it, proves its keys, and logs what changes. Nothing of it counts for
// Status. Run is called once; the other methods may be called from any number of goroutines at any time, ask no HSM and do
// not wait for one.
type Reader struct {
	cfg      ReaderConfig
	schedule schedule
	log      changes
	reported string // Run's alone: the words of the last line of the log

	mu      sync.Mutex // guards the fields below
	failure error      // of the last round; nil: it went well
}

// ReadRing is how a read ring is.
type ReadRing struct {
	Ring     string
	Keys     int // served
	Proven   int // of these, sealed and opened with on a token that can be reached
	Retiring bool
	Problem  error // nil: every key is proven, or the ring is retiring and has none left
}

// NewReader returns a Reader that has not looked yet.
func NewReader(cfg ReaderConfig) *Reader {
	setDefault(&cfg.RefreshInterval, DefaultRefreshInterval)
	setDefault(&cfg.CallLimit, DefaultCallLimit)
	cfg.CallLimit = min(cfg.CallLimit, cfg.RefreshInterval)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = cfg.Logger.With("readRing", cfg.Name)
	return &Reader{
		cfg: cfg, failure: problem.ErrUnchecked,
		schedule: schedule{probeEvery: cfg.RefreshInterval, refreshEvery: cfg.RefreshInterval, random: rand.N[time.Duration]},
		log:      changes{logger: cfg.Logger, versions: map[string]string{}},
	}
}

// Name is the ring's name.
func (r *Reader) Name() string { return r.cfg.Name }

// View is the ring as it was last seen.
func (r *Reader) View() envelope.View { return r.cfg.Ring.Advance() }

// Run keeps the ring until ctx ends. Its calls into the HSM are bounded by CallLimit.
func (r *Reader) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		r.round(ctx)
		if ctx.Err() != nil {
			return // a round that was cut short says nothing of the HSM
		}
		timer.Reset(r.schedule.wait(time.Now()))
	}
}

func (r *Reader) round(ctx context.Context) {
	err := r.bounded(ctx, r.cfg.Ring.Refresh)
	if exerciseErr := r.bounded(ctx, r.cfg.Ring.Exercise); err == nil {
		err = exerciseErr
	}
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	r.failure = err
	r.mu.Unlock()
	view := r.View()
	r.log.seen(view)
	is := r.Report()
	r.tell(is)
	r.schedule.probeAt, r.schedule.refreshAt = time.Time{}, time.Time{} // a round does both
	r.schedule.plan(time.Now(), view, is.Problem != nil)
}

func (r *Reader) bounded(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallLimit)
	defer cancel()
	return call(ctx)
}

// Report is how the ring is now: a token that is lost since the last look counts at once.
func (r *Reader) Report() ReadRing {
	r.mu.Lock()
	is := ReadRing{Ring: r.cfg.Name, Retiring: r.cfg.Retiring, Problem: r.failure}
	r.mu.Unlock()
	view := r.View()
	for i := range view.Versions {
		if v := &view.Versions[i]; v.State != envelope.Refused {
			is.Keys++
			if v.Works {
				is.Proven++
			}
		}
	}
	switch {
	case is.Keys == 0 && is.Retiring && errors.Is(is.Problem, envelope.ErrRingEmpty) && !errors.Is(is.Problem, envelope.ErrUnavailable):
		is.Problem = nil
	case is.Problem == nil && is.Proven < is.Keys:
		is.Problem = envelope.ErrUnavailable
	}
	return is
}

// tell logs how the ring is when that is news.
func (r *Reader) tell(is ReadRing) {
	class := problem.Of(is.Problem)
	if class.Words == r.reported {
		return
	}
	r.reported = class.Words
	if is.Problem == nil {
		r.cfg.Logger.Info("the read ring can be used", "keys", is.Keys)
		return
	}
	r.cfg.Logger.Error("the read ring cannot be used, or not all of its keys; Status does not depend on it", "error", is.Problem,
		"hint", "do not restart kube-apiserver on this node while etcd holds key_ids of this ring; "+class.Hint)
}
