package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// asking is clients that ask without a pause, by turns for an Encrypt and for a Decrypt, and go on after a request has failed.
// Its methods may be called from any goroutine.
type asking struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // guards all below
	good  []int      // answers, by client
	last  time.Time  // when somebody had one
	since outage
}

// outage is what those who asked had to bear.
type outage struct {
	Longest time.Duration // without a good answer
	Failed  int
	First   error // of the failures
}

// afterFailure is how long a client waits before it asks again.
const afterFailure = 10 * time.Millisecond

// ask starts so many clients on the connection.
func (c *client) ask(ctx context.Context, clients int, ops ...string) *asking {
	ctx, stop := context.WithCancel(ctx)
	a := &asking{stop: stop, good: make([]int, clients), last: time.Now()}
	for i := range clients {
		a.wg.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				if err := c.one(ctx, ops[n%len(ops)], n); !a.note(ctx, i, err) {
					pause(ctx, afterFailure)
				}
			}
		})
	}
	return a
}

// note takes the outcome of one request. What fails because the clients are to end is of no account.
func (a *asking) note(ctx context.Context, client int, err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch now := time.Now(); {
	case err == nil:
		a.good[client]++
		a.since.Longest = max(a.since.Longest, now.Sub(a.last))
		a.last = now
	case ctx.Err() == nil:
		if a.since.Failed++; a.since.First == nil {
			a.since.First = err
		}
	}
	return err == nil
}

// look gives what came since the last look.
func (a *asking) look() outage {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.since
	o.Longest = max(o.Longest, time.Since(a.last))
	a.since = outage{}
	return o
}

// each waits until each client has had n more good answers: what was under way before has come to its end then.
func (a *asking) each(ctx context.Context, n int) error {
	a.mu.Lock()
	want := slices.Clone(a.good)
	a.mu.Unlock()
	return until(ctx, eventTimeout, fmt.Sprintf("%d more answers for each client", n), func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for i, had := range want {
			if a.good[i] < had+n {
				return false
			}
		}
		return true
	})
}

func (a *asking) end() {
	a.stop()
	a.wg.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// eventTimeout bounds the wait for what takes a second or two.
const eventTimeout = 30 * time.Second

// until waits until done. It polls: another process's doings give no event.
func until(ctx context.Context, within time.Duration, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !done() {
		if pause(ctx, time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
	return nil
}
