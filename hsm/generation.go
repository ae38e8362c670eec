package hsm

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// generation is one connection: worker, slot, login, sessions and handles, which live and die together.
type generation struct {
	number   uint64
	worker   workerProcess
	api      p11.API // of worker, for working sessions
	slot     uint
	serial   string      // of the token, as it says itself
	isNew    bool        // the first one in its worker
	loggedIn bool        // false on a token that needs no login
	admin    p11.Session // keeps the login, reads the ring; belongs to the holder of Token.admin
	table    atomic.Pointer[table]
	madeAt   time.Time   // when the ring had been read
	given    atomic.Bool // what was read then was asked for

	checked map[envelope.KeyID]time.Time // when keys were checked last; Token.mu guards it

	mu          sync.Mutex    // guards the fields below; Token.mu comes before it
	using       int           // operations under way
	unused      chan struct{} // made by end; closed when no operation is under way any more
	idle        []p11.Session
	unclosed    []p11.Session // of no use, and C_CloseSession failed for them
	closed      bool          // its sessions are closed as they come back
	adminClosed bool          // the admin session is closed, or among the unclosed
}

// drop ends gen if it is the present generation: another may have taken its place since the caller looked. Its idle
// sessions are closed by the next closeRetired, those at work when they come back.
func (t *Token) drop(gen *generation, why string) {
	t.change(func() {
		if gen == nil || t.gen != gen {
			return
		}
		t.dedup.dropped(t.log, t.gen.number, why)
		t.gen.end()
		t.retired = append(t.retired, t.gen)
		t.gen, t.cause = nil, nil
		clear(t.suspects)
	})
}

// end has the generation's sessions closed as they come back. unused is closed when no operation is under way any more.
func (g *generation) end() (unused <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.unused == nil {
		g.unused = make(chan struct{})
		if g.using == 0 {
			close(g.unused)
		}
	}
	return g.unused
}

// enter begins an operation. false: the generation has ended.
func (g *generation) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.using++
	}
	return !g.closed
}

func (g *generation) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.using--
	if g.closed && g.using == 0 {
		close(g.unused)
	}
}

// closeRetired closes what dropped generations of the present worker left open, before any session is opened in it again.
// It fails when the token will not close one: only a new worker ends that.
func (t *Token) closeRetired(api p11.API) error {
	t.mu.Lock()
	retired := t.retired
	t.mu.Unlock()
	for _, gen := range retired {
		if err := gen.close(api); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retired = t.retired[len(retired):]
	return nil
}

// forgetRetired is for a new worker, in which nothing is open.
func (t *Token) forgetRetired() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retired, t.newWorker = nil, false
}

func (t *Token) requireNewWorker() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.newWorker = true
}

func (t *Token) needsNewWorker() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.newWorker
}

// close closes the sessions that nobody works on; it may be called again after an error.
func (g *generation) close(api p11.API) error {
	if err := g.closeUnclosed(api); err != nil {
		return err
	}
	g.mu.Lock()
	g.unclosed, g.idle = g.idle, nil
	if !g.adminClosed {
		g.unclosed, g.adminClosed = append(g.unclosed, g.admin), true
	}
	g.mu.Unlock()
	return g.closeUnclosed(api)
}

// closeUnclosed tries again to close what would not close.
func (g *generation) closeUnclosed(api p11.API) error {
	for {
		g.mu.Lock()
		n := len(g.unclosed)
		if n == 0 {
			g.mu.Unlock()
			return nil
		}
		s := g.unclosed[n-1]
		g.mu.Unlock()
		if err := closeSession(api, s); err != nil {
			return err
		}
		g.mu.Lock()
		g.unclosed = slices.DeleteFunc(g.unclosed, func(u p11.Session) bool { return u == s })
		g.mu.Unlock()
	}
}
