package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// Outcome is what became of an act on a token that cannot be taken back.
type Outcome string

// The outcomes of a destruction (destroyed, kept) and of a creation (made, not made). Kept and NotMade are promises: no
// call of this process does it later. Unknown says that the act was begun, and that the token could not be read since or
// that the call has not returned: it may be done, and may be done later.
const (
	Destroyed Outcome = "destroyed"
	Kept      Outcome = "kept"
	Made      Outcome = "made"
	NotMade   Outcome = "not made"
	Unknown   Outcome = "unknown"
)

// claim is the right to begin a call that cannot be taken back. A sequence of PKCS#11 calls that was abandoned goes on
// when its call returns, and must not begin such a call then: its caller has reported that nothing was done.
type claim struct {
	mu        sync.Mutex
	abandoned bool
	begun     bool // such a call was begun
	inside    bool // and has not returned
}

// do makes the call, unless the caller has gone.
func (c *claim) do(call func() error) error {
	c.mu.Lock()
	if c.abandoned {
		c.mu.Unlock()
		return errAbandoned
	}
	c.begun, c.inside = true, true
	c.mu.Unlock()
	err := call()
	if overdue, ok := errors.AsType[*p11.Overdue](err); ok {
		go func() {
			<-overdue.Returned
			c.returned()
		}()
		return err
	}
	c.returned()
	return err
}

func (c *claim) returned() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside = false
}

// abandon keeps every further call from beginning, and reports whether one has begun.
func (c *claim) abandon() (begun bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abandoned = true
	return c.begun
}

// pending reports whether a call that was begun has not returned.
func (c *claim) pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inside
}

// settleCalls bounds the time in which it must become clear what an act has come to, in callTimeouts.
const settleCalls = 5

// errPending: the token shows that the act is not done, and the call that does it has not returned.
var errPending = errors.New("the call has not returned, and the token does not show that it was done")

// settle looks at the token until it is clear whether an act was done, for a limited time: also after an error, because
// a token may have done what it reports as failed. isDone looks once. An error means that it is unknown. It does not end
// with its caller's context: a caller who gives up must be told the truth too.
func (t *Token) settle(right *claim, isDone func(context.Context) (bool, error)) (done bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), settleCalls*t.cfg.CallTimeout)
	defer cancel()
	for {
		pending := right.pending() // before the look: a call that returns meanwhile is looked after once more
		done, err := isDone(ctx)
		switch {
		case err == nil && (done || !pending):
			return done, nil
		case err == nil:
			err = errPending
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("looking at the token again: %w", err)
		case <-time.After(t.cfg.CallTimeout / settleCalls):
		}
	}
}
