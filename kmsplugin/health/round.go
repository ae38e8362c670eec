package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// settleTries bounds how often one probe starts over because the current key changed under it.
const settleTries = 3

// round does what is due: re-read the ring, exercise the current key, publish, and plan the next round.
func (h *Health) round(ctx context.Context) {
	start := time.Now()
	var refreshErr error
	if h.schedule.refreshDue(start) {
		refreshErr = h.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		h.log.refreshed(refreshErr)
	}
	view := h.ringView()
	// A key that was found after its time is tried before it is said to be held back.
	if h.schedule.probeDue(start) || h.differs(view) || view.Deferred != nil {
		began := time.Now()
		var err error
		view, err = h.exercise(ctx)
		took := time.Since(began)
		if h.cfg.Hold != nil && ctx.Err() == nil {
			h.cfg.Hold.Probed(ctx, view, err)
		}
		if ctx.Err() != nil {
			return
		}
		h.publish(view, err, took)
	}
	h.log.seen(view)
	h.noteOthers(view)
	r := h.latest.Load()
	h.schedule.plan(time.Now(), view, r.failure != nil || r.warning != nil || refreshErr != nil)
	if h.cfg.Hold != nil && h.cfg.Hold.Holding() {
		h.schedule.within(start, holdProbe) // from the beginning of this one: a probe of an HSM that is just quick enough takes seconds
	}
}

func (h *Health) ringView() envelope.View { return h.cfg.Ring.Advance() }

// differs reports whether the ring now names another current key than the last probe did, or none.
func (h *Health) differs(view envelope.View) bool {
	return view.Current == nil || view.Current.ID != h.latest.Load().key
}

func (h *Health) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallLimit)
	defer cancel()
	return h.cfg.Ring.Refresh(ctx)
}

// exercise is one probe. A key that the token no longer knows is worth one look at the ring before anything is said:
// it tells a key that is gone from one that has a new handle or a successor. A current key that changed during the
// probe, and was not itself exercised by it, is probed in its turn.
func (h *Health) exercise(ctx context.Context) (envelope.View, error) {
	refreshed := false
	for range settleTries {
		before := h.ringView()
		err := h.exerciseOnce(ctx)
		view := h.ringView()
		switch {
		case errors.Is(err, envelope.ErrUnknownKey) && !refreshed:
			refreshed = true
			h.log.refreshed(h.refresh(ctx))
		case problem.IsUnknownKey(err):
			return view, fmt.Errorf("%w: %w", envelope.ErrKeyMissing, err)
		case err != nil:
			return view, err
		case view.Current == nil:
			return view, cmp.Or(view.Problem, envelope.ErrNotProven)
		case view.Current.Works, before.Current != nil && before.Current.ID == view.Current.ID:
			return view, nil
		}
	}
	return h.ringView(), fmt.Errorf("%w: the current key changed during each of %d probes", envelope.ErrNotProven, settleTries)
}

func (h *Health) exerciseOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.CallLimit)
	defer cancel()
	return h.cfg.Ring.Exercise(ctx)
}

// publish makes the outcome what Report says, tells those who asked to be told, and has the key remembered.
func (h *Health) publish(view envelope.View, failure error, took time.Duration) {
	now := time.Now()
	last := h.latest.Load()
	r := &result{at: now, failure: failure, key: last.key, good: last.good}
	if failure == nil {
		r.key, r.good, r.warning = view.Current.ID, now, view.Problem
	}
	h.latest.Store(r)
	if h.cfg.Probed != nil {
		h.cfg.Probed(failure, took)
	}
	h.tell(h.judged(r, now))
	if failure == nil {
		h.remember(Proven{Key: r.key, At: now})
	}
}

// watch tells of what time alone changes: a result that grows stale under a probe that hangs, a continuation that ends.
func (h *Health) watch(ctx context.Context) {
	ticker := time.NewTicker(h.cfg.ProbeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.tell(h.Report())
		}
	}
}

// tell logs the report, and passes it on, when it says something else than the one before.
func (h *Health) tell(report Report) {
	keyID := ""
	if !report.Key.IsZero() {
		keyID = report.Key.String()
	}
	class := problem.Of(report.Problem)
	if h.log.reported(report.Problem, class, keyID) && h.cfg.Changed != nil {
		h.cfg.Changed(class.Words, keyID)
	}
}

// remember hands the proven key to keep, in place of one that keep has not taken yet.
func (h *Health) remember(proven Proven) {
	select {
	case <-h.proven:
	default:
	}
	h.proven <- proven // there is room: nobody else sends
}

// keep writes proven keys to stateDir until ctx ends: another key at once, the same once a minute at most. It has a
// goroutine of its own, so that a disk that hangs does not stop the probe, and Status with it.
func (h *Health) keep(ctx context.Context) {
	saved := h.cfg.Proven
	for {
		var proven Proven
		select {
		case proven = <-h.proven:
		case <-ctx.Done():
			return
		}
		if h.cfg.StateDir == "" || proven.Key == saved.Key && proven.At.Sub(saved.At).Abs() < saveInterval {
			continue
		}
		err := h.save(h.cfg.StateDir, proven)
		h.log.kept(err)
		if err == nil {
			saved = proven
		}
	}
}
