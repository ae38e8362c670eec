package hsm

import (
	"context"
	"sync"
	"time"
)

// flight knows the calls into one module that have not returned. A PKCS#11 call cannot be cancelled, so it is
// by this list that hanging calls are counted and that C_Finalize waits until there is none.
type flight struct {
	mu       sync.Mutex
	active   map[*call]struct{}
	draining chan struct{} // non-nil while drained or draining; closed when calls may begin again
	landed   chan struct{} // non-nil while somebody waits for calls to end; closed at the next end
	pulse    chan struct{} // non-nil while calls are active, or were a moment ago; closed and replaced at each beat
}

// beat is how finely time-outs of operations are kept. One ticker for all calls that are in flight is much cheaper
// than a timer for each: a timer that is the earliest wakes a thread only to be told of it.
const beat = 50 * time.Millisecond

// call is one or more C calls in sequence on one goroutine. Its deadline runs from its last progress.
type call struct {
	token string
	what  string
	since time.Time // of the last progress; guarded by flight.mu
}

func newFlight() *flight { return &flight{active: map[*call]struct{}{}} }

// begin enters a call; it waits while the module is drained.
func (f *flight) begin(ctx context.Context, token, what string) (*call, error) {
	for {
		f.mu.Lock()
		draining := f.draining
		if draining == nil {
			c := &call{token: token, what: what, since: time.Now()}
			f.active[c] = struct{}{}
			if f.pulse == nil {
				f.pulse = make(chan struct{})
				go f.beats()
			}
			f.mu.Unlock()
			return c, nil
		}
		f.mu.Unlock()
		select {
		case <-draining:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// beats wakes those who wait, at each beat, until no call is active.
func (f *flight) beats() {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for range ticker.C {
		f.mu.Lock()
		close(f.pulse)
		if len(f.active) == 0 {
			f.pulse = nil
			f.mu.Unlock()
			return
		}
		f.pulse = make(chan struct{})
		f.mu.Unlock()
	}
}

// wait waits for the outcome of a call that is active until ctx ends or the time is up, to the next beat; false: it
// has not come.
func (f *flight) wait(ctx context.Context, until time.Time, done <-chan outcome) (outcome, bool) {
	for {
		f.mu.Lock()
		pulse := f.pulse // nil when the call has ended already: its outcome is there, or will be at once
		f.mu.Unlock()
		select {
		case o := <-done:
			return o, true
		case <-ctx.Done():
			return outcome{}, false
		case <-pulse:
			if !time.Now().Before(until) {
				return outcome{}, false
			}
		}
	}
}

// progress notes that one C call of the sequence has returned and the next begins.
func (f *flight) progress(c *call, next string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.since, c.what = time.Now(), next
}

// grant notes that the next step is many C calls that report no progress: it has extra time beyond that of one.
func (f *flight) grant(c *call, next string, extra time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.since, c.what = time.Now().Add(extra), next
}

func (f *flight) sinceProgress(c *call) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(c.since)
}

func (f *flight) end(c *call) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.active, c)
	if f.landed != nil {
		close(f.landed)
		f.landed = nil
	}
}

// idle reports whether every call has returned.
func (f *flight) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.active) == 0
}

// drain keeps further calls from beginning and waits until none is in flight but self, the caller's own. It
// fails when ctx ends first; calls may then begin again. After success the caller must call resume.
func (f *flight) drain(ctx context.Context, self *call) (resume func(), err error) {
	f.mu.Lock()
	gate := make(chan struct{})
	f.draining = gate
	f.mu.Unlock()
	resume = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.draining = nil
		close(gate)
	}
	for {
		f.mu.Lock()
		_, selfActive := f.active[self]
		if len(f.active) == 0 || len(f.active) == 1 && selfActive {
			f.mu.Unlock()
			return resume, nil
		}
		if f.landed == nil {
			f.landed = make(chan struct{})
		}
		landed := f.landed
		f.mu.Unlock()
		select {
		case <-landed:
		case <-ctx.Done():
			resume()
			return nil, ctx.Err()
		}
	}
}

// hanging counts the token's calls that have made no progress for longer than limit, and tells when the
// latest of them last did.
func (f *flight) hanging(token string, limit time.Duration) (n int, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.active {
		if c.token != token || time.Since(c.since) <= limit {
			continue
		}
		n++
		if c.since.After(since) {
			since = c.since
		}
	}
	return n, since
}

// longest tells the call that has made no progress for the longest time.
func (f *flight) longest() (what string, age time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.active {
		if a := time.Since(c.since); a > age {
			what, age = c.what, a
		}
	}
	return what, age
}
