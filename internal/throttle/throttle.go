// Package throttle keeps what others can cause at will (bad requests, refused peers) from filling the log: one line in
// an interval, with the number of those left out before it.
//
// It depends on no other package. All methods may be called from any number of goroutines.
package throttle

import (
	"sync"
	"time"
)

// growth is by how much the pause between two lines grows while the events go on.
const growth = 4

// Throttle lets one event in Interval pass; while they go on, the pause between two grows to Longest. After as long without
// any, it begins again. The zero Interval lets all pass, the zero Longest is no growth. It must not be copied.
//
// Concurrency: all methods may be called from any number of goroutines.
type Throttle struct {
	Interval, Longest time.Duration

	mu      sync.Mutex // guards the fields below
	passed  time.Time  // when the last one passed; zero: begun again
	seen    time.Time  // when the last one was
	pause   time.Duration
	skipped int
}

// Allow reports whether the event at now passes, and how many did not since the last that did.
func (t *Throttle) Allow(now time.Time) (pass bool, skipped int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	quiet := now.Sub(t.seen) >= max(t.Interval, t.Longest)
	t.seen = now
	switch {
	case t.passed.IsZero() || quiet:
		t.pause = t.Interval
	case now.Sub(t.passed) < t.pause:
		t.skipped++
		return false, 0
	default:
		t.pause = min(growth*t.pause, max(t.Interval, t.Longest))
	}
	skipped, t.skipped, t.passed = t.skipped, 0, now
	return true, skipped
}

// Restart lets the next event pass, whenever it comes.
func (t *Throttle) Restart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.passed = time.Time{}
}
