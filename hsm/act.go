package hsm

import "sync"

// Outcome is what became of an act on a token that cannot be taken back.
type Outcome string

// The outcomes of a destruction. Kept is a promise: no call of this process destroys the key later. Unknown says that
// the act was begun and that the token could not be read since: the key may be there or not, and may still go.
const (
	Destroyed Outcome = "destroyed"
	Kept      Outcome = "kept"
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
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.inside = false
	}()
	return call()
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
