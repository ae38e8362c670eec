// Package throttle keeps what others can cause at will (bad requests, refused peers) from filling the log: one line in
// an interval, with the number of those left out before it.
package throttle

import (
	"sync"
	"time"
)

// Throttle lets one event in Interval pass. The zero Interval lets all pass. It must not be copied.
//
// Concurrency: Allow may be called from any number of goroutines.
type Throttle struct {
	Interval time.Duration

	mu      sync.Mutex
	last    time.Time
	skipped int
}

// Allow tells whether the event at now passes, and how many did not since the last that did.
func (t *Throttle) Allow(now time.Time) (pass bool, skipped int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.last.IsZero() && now.Sub(t.last) < t.Interval {
		t.skipped++
		return false, 0
	}
	skipped, t.skipped, t.last = t.skipped, 0, now
	return true, skipped
}
