package hold

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// Begun implements health.Hold: a value asks for a probe.
func (h *Hold) Begun() <-chan struct{} { return h.begun }

// Judge implements health.Hold: it changes a report to what it is with the hold.
func (h *Hold) Judge(report health.Report) health.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endIfOver(h.cfg.Boot())
	switch {
	case h.machine.revoked != nil:
		return health.Report{Problem: h.machine.revoked, LastGood: report.LastGood}
	case h.machine.holding && h.machine.short:
		report.Key, report.Problem = h.machine.held.key, problem.ErrNotHeld
	case h.machine.holding && !h.machine.mayAnswer(h.cfg.Boot()):
		report.Key, report.Problem = h.machine.held.key, fmt.Errorf("%w: %w", envelope.ErrUnavailable, errUncounted)
	case h.machine.holding:
		report.Key, report.Problem = h.machine.held.key, nil
	}
	return report
}

// Probed implements health.Hold: it takes the outcome of a probe. On hold, a good one is followed by one operation of each kind as
// requests do them, which has to be quick.
func (h *Hold) Probed(ctx context.Context, view envelope.View, failure error) {
	well := failure == nil && view.Current != nil
	quick := well && (!h.watching.Load() || h.isQuick(ctx, view.Current.ID))
	if ctx.Err() != nil {
		return // it was cut short
	}
	views := h.cfg.Ring.Views()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.see(views)
	h.endIfOver(h.cfg.Boot())
	switch kind := classOf(failure); {
	case well:
		h.proven(view.Current.ID, quick)
	case kind == away:
		if !h.begin(failure) {
			break
		}
		h.machine.probed(false, h.cfg.Boot())
	case kind == revoked:
		h.machine.revoked = failure
		h.wipe("the HSM refuses the PIN: that is a revocation")
	case kind == broken:
		h.wipe("the HSM failed the self-test")
	case !errors.Is(failure, envelope.ErrBusy):
		h.stop("the HSM answers, and cannot be used before a person acts")
	}
	h.up = well
}

// proven takes a good probe. mu is held.
func (h *Hold) proven(key envelope.KeyID, quick bool) {
	now, boot := h.cfg.Now(), h.cfg.Boot()
	h.machine.proof = proof{key: key, day: envelope.DayOf(now), at: now}
	h.machine.revoked = nil
	if h.machine.holding {
		if !h.machine.probed(quick, boot) {
			return
		}
		h.stop("the HSM answers again")
	}
	if !h.paused && h.machine.ledger.left(boot) > 0 {
		h.store.open()
	}
	h.wake(h.work)
}

// see takes what the rings look like: what the HSM has no more, or what the configuration refuses, is wiped. A ring that was not read
// yet says nothing. mu is held.
func (h *Hold) see(views []envelope.View) {
	h.served, h.rings, h.written = map[envelope.KeyID]bool{}, map[string]bool{}, views[0].Ring
	for i := range views {
		view := &views[i]
		h.rings[view.Ring] = !view.LastRead.IsZero()
		for j := range view.Versions {
			if v := &view.Versions[j]; v.State != envelope.Refused {
				h.served[v.ID] = true
			}
		}
	}
	for _, id := range h.store.keyIDs() {
		if read, configured := h.rings[id.Ring]; !h.served[id] && (read || !configured) {
			h.wipeKey(id, "the HSM has the key no more, or the configuration refuses it")
		}
	}
}

// wipeKey wipes what is held under one key, and ends a hold that rests on it. mu is held.
func (h *Hold) wipeKey(id envelope.KeyID, reason string) {
	any := h.store.wipeKey(id)
	if h.machine.holding && h.machine.held.key == id {
		h.stop(reason)
	}
	if any {
		h.wiped(id.String(), reason)
	}
}
