package hold

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// workers is how many operations beside requests are with the HSM at once: half of the sessions that a token has by default.
const workers = 4

// batch is how many listed DEKs are opened between two looks at the list.
const batch = 256

// workBeside asks the HSM for what is missing, after each good probe. On hold it asks for nothing.
func (h *Hold) workBeside(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.work:
		}
		if !h.mayWork(ctx) { // and what is held must not change on hold
			continue
		}
		h.derive(ctx)
		h.fill(ctx)
		h.proveOthers(ctx)
		h.wake(h.look)
	}
}

// patience is for what nobody waits for: deriving a hold key takes up to four operations, one after the other.
func (h *Hold) patience() time.Duration { return 4 * h.cfg.CallTimeout }

// mayWork reports whether the HSM may be asked beside requests, and its answers can be held.
func (h *Hold) mayWork(ctx context.Context) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return ctx.Err() == nil && h.up && !h.machine.holding && !h.paused && !h.machine.over(h.cfg.Boot()) && h.store.takes()
}

// isQuick does what requests do, in the way that they do it, and reports whether each step took less than half of callTimeout.
func (h *Hold) isQuick(ctx context.Context, id envelope.KeyID) bool {
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	defer clear(dek)
	quick := true
	timed := func(f func(context.Context) ([]byte, error)) ([]byte, error) {
		start := time.Now()
		out, err := within(ctx, f)
		quick = quick && err == nil && time.Since(start) < h.cfg.CallTimeout/2
		return out, err
	}
	sealed, err := timed(func(ctx context.Context) ([]byte, error) { return h.cfg.Ring.Seal(ctx, id, dek) })
	if err != nil {
		return false
	}
	opened, err := timed(func(ctx context.Context) ([]byte, error) { return h.cfg.Ring.Open(ctx, id.String(), sealed) })
	defer clear(opened)
	return err == nil && quick && bytes.Equal(opened, dek)
}

// keysToKeep are the keys for which hold keys are kept, that of the last proof first: another node on hold may still write under an
// older one, or write under a newer one already.
func (h *Hold) keysToKeep() (keys []envelope.KeyID, first, last envelope.Day) {
	h.mu.Lock()
	proof := h.machine.proof
	h.mu.Unlock()
	keys = append(keys, proof.key)
	for _, view := range h.cfg.Ring.Views() {
		n := 0
		for i := len(view.Versions) - 1; i >= 0 && n < keysKept; i-- {
			if v := &view.Versions[i]; v.State != envelope.Refused && v.ID != proof.key {
				keys = append(keys, v.ID)
				n++
			}
		}
	}
	first, last = days(proof.day, h.cfg.Limit)
	return keys, first, last
}

// derive derives the hold keys that are missing, and wipes those of other days and keys.
func (h *Hold) derive(ctx context.Context) {
	keys, first, last := h.keysToKeep()
	kept := map[envelope.KeyID]bool{}
	for _, id := range keys {
		kept[id] = true
	}
	h.store.dropKeys(func(id envelope.KeyID, day envelope.Day) bool { return kept[id] && day >= first && day <= last })
	var missing []keyDay
	for _, id := range keys {
		for day := first; day <= last; day++ {
			if !h.store.hasKeys(id, day, day) {
				missing = append(missing, keyDay{id, day})
			}
		}
	}
	h.together(ctx, len(missing), func(i int) bool { return h.deriveOne(ctx, missing[i].id, missing[i].day) })
}

// deriveOne reports whether others may be tried.
func (h *Hold) deriveOne(ctx context.Context, id envelope.KeyID, day envelope.Day) bool {
	short, cancel := context.WithTimeout(ctx, h.patience())
	defer cancel()
	key, err := h.cfg.Ring.HoldKey(short, id, day)
	defer clear(key[:])
	if err != nil {
		h.cfg.Logger.Debug("a hold key was not derived", "keyID", id.String(), "error", err)
		return classOf(err) != away
	}
	h.store.putKey(id, day, &key)
	h.record(EventDerived, id.String(), fmt.Sprintf("the hold key of %s", time.Unix(int64(day)*24*60*60, 0).UTC().Format(time.DateOnly)))
	return true
}

// together does f for 0 to n-1, a few at once, until one reports false or the HSM may not be asked any more.
func (h *Hold) together(ctx context.Context, n int, f func(i int) bool) {
	var mu sync.Mutex // guards next
	next := 0
	take := func() (i int, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= n
	}
	var running sync.WaitGroup
	for range min(workers, n) {
		running.Go(func() {
			for {
				i, ok := take()
				if !ok || !h.mayWork(ctx) {
					return
				}
				if !f(i) {
					mu.Lock()
					next = n
					mu.Unlock()
				}
			}
		})
	}
	running.Wait()
}

// fill opens the listed DEKs that are not held. One that is not authentic is taken off the list: no API server gets it either.
func (h *Hold) fill(ctx context.Context) {
	var mu sync.Mutex                 // guards skip, forgotten and progress
	skip := map[envelope.KeyID]bool{} // keys that the HSM cannot use
	forgotten := 0
	for h.mayWork(ctx) {
		h.mu.Lock()
		served := h.served
		h.mu.Unlock()
		entries := h.store.unheld(func(id envelope.KeyID) bool { return served[id] && !skip[id] }, batch)
		progress := false
		h.together(ctx, len(entries), func(i int) bool {
			kind, err := h.fillOne(ctx, entries[i])
			mu.Lock()
			defer mu.Unlock()
			switch {
			case kind == answers:
				progress = true
			case (errors.Is(err, envelope.ErrUnauthentic) || errors.Is(err, envelope.ErrMalformed)) && h.store.forget(entries[i].KeyID, entries[i].Envelope):
				forgotten++
				progress = true
			case kind == away:
				return false
			default:
				if id, _, err := envelope.ParseUsedKeyID(entries[i].KeyID); err == nil {
					skip[id] = true
					progress = true
				}
			}
			return true
		})
		if !progress {
			break
		}
	}
	if forgotten > 0 {
		h.cfg.Logger.Warn("listed DEKs do not open under their key_id, and are listed no more", "number", forgotten,
			"hint", "find out who could write to etcd or to stateDir; see docs/outage.md")
	}
}

func (h *Hold) fillOne(ctx context.Context, e holdfile.Entry) (class, error) {
	short, cancel := context.WithTimeout(ctx, h.patience())
	defer cancel()
	dek, err := h.cfg.Ring.Open(short, e.KeyID, e.Envelope)
	defer clear(dek)
	if err == nil {
		h.store.put(e.KeyID, e.Envelope, dek)
	}
	return classOf(err), err
}

// proveOthers opens one held DEK of each key but the current one, which the probe proves. What the HSM cannot open any more is not
// held any longer.
func (h *Hold) proveOthers(ctx context.Context) {
	h.mu.Lock()
	current := h.machine.proof.key
	h.mu.Unlock()
	samples := h.store.samples()
	delete(samples, current)
	var entries []holdfile.Entry
	var ids []envelope.KeyID
	for id, e := range samples {
		entries, ids = append(entries, e), append(ids, id)
	}
	h.together(ctx, len(entries), func(i int) bool {
		kind, err := h.fillOne(ctx, entries[i])
		if kind == broken || errors.Is(err, envelope.ErrUnauthentic) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.wipeKey(ids[i], "the HSM does not open what was sealed under the key")
		}
		return kind != away
	})
}
