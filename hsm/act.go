package hsm

import (
	"cmp"
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
	mu        sync.Mutex // guards the fields below
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

// settleCalls is how long each step of settle may take, in callTimeouts; connecting again may take connectTimeout more.
const settleCalls = 5

// errPending: the token shows that the act is not done, and the call that does it has not returned.
var errPending = errors.New("the call has not returned, and the token does not show that it was done")

// errNotFresh: what the token does not show may be there all the same.
var errNotFresh = errors.New("the worker in which it was begun does not show that it was done, and its library may show only what it has read before")

// settle finds out whether an act was done that was begun in the worker in: also after an error, because a token may have
// done what it reports as failed. isDone looks once. An error means that it is unknown. It does not end with its caller's
// context: a caller who gives up must be told the truth too.
//
// It looks. Where that does not show the act as done, it ends the worker, so that the act can no longer take effect in it, and
// looks through the one that the supervisor starts: a library that reads its keys once would not show one that was made
// since. A worker that is inside the call itself cannot be ended in time.
func (t *Token) settle(right *claim, in workerProcess, isDone func(context.Context) (bool, error)) (bool, error) {
	done, err := t.lookOnce(isDone)
	if done {
		return true, nil
	}
	t.log.Info("ending the worker of the token, to look at the token through another one", "cause", cmp.Or(err, errNotFresh))
	t.endForLook(in)
	again, cancel := context.WithTimeout(context.Background(), t.cfg.ConnectTimeout+settleCalls*t.cfg.CallTimeout)
	defer cancel()
	for {
		ended, pending := hasEnded(in), right.pending() // before the look
		done, err := t.lookOnce(isDone)
		switch {
		case err == nil && (done || ended):
			return done, nil
		case err == nil && pending:
			return false, errPending
		}
		select {
		case <-again.Done():
			return false, fmt.Errorf("looking at the token again: %w", cmp.Or(err, errNotFresh))
		case <-time.After(t.cfg.CallTimeout / settleCalls):
		}
	}
}

// endForLook ends the worker: in good order where no call hangs in it, because some tokens keep the sessions of a program that
// was killed.
func (t *Token) endForLook(in workerProcess) {
	if n, _ := in.Hanging(0); n == 0 {
		in.End()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleCalls*t.cfg.CallTimeout)
	defer cancel()
	in.EndNow(ctx)
}

// lookOnce looks at the token. With an error it is not known to be done.
func (t *Token) lookOnce(isDone func(context.Context) (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), settleCalls*t.cfg.CallTimeout)
	defer cancel()
	done, err := isDone(ctx)
	return done && err == nil, err
}
