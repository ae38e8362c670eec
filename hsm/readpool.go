package hsm

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// readSessions is how many sessions a reading uses at once. A worker answers 16 control requests at a time, and others
// make some too.
const readSessions = 8

// readPool is the sessions of one reading. On a network HSM each call is a round trip, and a start waits for six of every
// key; so several keys are read at once, each on a session of its own.
//
// One session is there from the beginning. More are opened while it works already, until the token gives no more:
// those that there are do the work then.
type readPool struct {
	r      *keyReader
	free   chan *readSession
	stop   atomic.Bool // no further work begins, and no session is opened
	opened int         // by grow, which one goroutine calls

	mu      sync.Mutex     // guards the fields below
	open    []*readSession // usable ones: at least one, because the login ends with the last session that closes
	failed  error          // a session was left open
	aside   int            // goroutines that open and close sessions
	changed sync.Cond      // of open and aside
}

// readSession is one session of a pool. It belongs to the goroutine that took it from free.
type readSession struct {
	p11.Session       // 0: given up
	broken      error // it could not be replaced, and was the last one
}

// pool makes the pool of a reading. close ends it.
func (r *keyReader) pool() *readPool {
	p := &readPool{r: r, free: make(chan *readSession, 2*readSessions)}
	p.changed.L = &p.mu
	for _, s := range append([]p11.Session{r.session}, r.beside...) {
		p.add(s)
	}
	return p
}

// grow has up to n sessions opened, as far as there is room for them.
func (p *readPool) grow(n int) {
	more := min(n, readSessions) - (1 + len(p.r.beside)) // as many as are to be opened in all
	if more = min(more, p.r.room) - p.opened; more > 0 {
		p.opened += more
		p.mu.Lock()
		defer p.mu.Unlock()
		p.doAside(func() { p.openMore(more) })
	}
}

// doAside does f on a goroutine of its own. p.mu is held.
func (p *readPool) doAside(f func()) {
	p.aside++
	go func() {
		f()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.aside--
		p.changed.Broadcast()
	}()
}

func (p *readPool) add(s p11.Session) {
	added := &readSession{Session: s}
	p.mu.Lock()
	p.open = append(p.open, added)
	p.changed.Broadcast()
	p.mu.Unlock()
	p.free <- added
}

// openMore opens n sessions. A failure is no news: what the token has no session for is done on the others.
func (p *readPool) openMore(n int) {
	for range n {
		if p.stop.Load() {
			return
		}
		s, err := p.r.open()
		if err != nil {
			return
		}
		p.add(s)
	}
}

// close leaves the sessions that are open to the reader. The error is that of a session that would not close.
func (p *readPool) close() error {
	p.stop.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.aside > 0 {
		p.changed.Wait()
	}
	p.r.session, p.r.beside = p.open[0].Session, nil
	for _, s := range p.open[1:] {
		p.r.beside = append(p.r.beside, s.Session)
	}
	return p.failed
}

// each does f for 0 to n-1, several at once, each on a session; they begin in this order. When one fails no other begins.
// The error is that of the lowest number that failed.
func (p *readPool) each(n int, f func(s *readSession, i int) error) error {
	errs := make([]error, n)
	var next atomic.Int64
	var working sync.WaitGroup
	for range min(n, readSessions) {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !p.stop.Load(); i = int(next.Add(1)) - 1 {
				errs[i] = p.on(func(s *readSession) error { return f(s, i) })
				if errs[i] != nil {
					p.stop.Store(true)
				}
			}
		})
	}
	working.Wait()
	return cmp.Or(errs...)
}

// on does f on a session; on another one when the first is of no use.
func (p *readPool) on(f func(s *readSession) error) error {
	for tries := 0; ; tries++ {
		s := <-p.free
		if s.broken != nil {
			p.free <- s
			return s.broken
		}
		err := f(s)
		again := err != nil && s.Session != 0 && s.broken == nil && classOf(err) == classSession && tries < readSessions && p.giveUp(s, false)
		if s.Session != 0 {
			p.free <- s
		}
		if !again {
			return err
		}
	}
}

// retry does f, and does it again on another session when the token fails: a call that fails once must not cost a key. When it
// fails again, failed decides, with the session on which it did.
func (p *readPool) retry(s *readSession, f func(s *readSession) error, failed func(s *readSession, err error) error) error {
	err := f(s)
	if err == nil || !isOfKey(err) {
		return err
	}
	if err := p.replace(s); err != nil {
		return err
	}
	second := func(s *readSession) error {
		err := f(s)
		if err != nil && isOfKey(err) {
			return failed(s, err)
		}
		return err
	}
	if s.Session != 0 { // it was the last one
		return second(s)
	}
	return p.on(second)
}

// replace takes a session out of use on which something failed, because that may have left it unusable. The last one is
// replaced by another, which is opened before the old one is closed: the login would end.
func (p *readPool) replace(s *readSession) error {
	if p.giveUp(s, true) {
		return nil
	}
	fresh, err := p.r.api.OpenSession(p.r.slot, false)
	if err != nil {
		s.broken = fmt.Errorf("replacing session: %w", err)
		return s.broken
	}
	old := s.Session
	s.Session = fresh
	return p.closeOld(old)
}

// giveUp takes a session out of use and has another one opened in its place; nobody waits for that. It reports false for the
// last session, which stays; with wait, when no other is on its way.
func (p *readPool) giveUp(s *readSession, wait bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for wait && len(p.open) == 1 && p.aside > 0 {
		p.changed.Wait()
	}
	if len(p.open) == 1 {
		return false
	}
	p.open = slices.DeleteFunc(p.open, func(o *readSession) bool { return o == s })
	old := s.Session
	s.Session = 0
	p.doAside(func() {
		if p.closeOld(old) == nil {
			p.openMore(1)
		}
	})
	return true
}

func (p *readPool) closeOld(old p11.Session) error {
	err := closeSession(p.r.api, old)
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.r.leftOpen, p.failed = true, cmp.Or(p.failed, err)
	}
	return err
}

// sessionToken is a generation in the making as a token: the sessions of a reading, one key, no retries.
type sessionToken struct {
	envelope.Token // nil: only the methods below are called
	pool           *readPool
	held           *heldKey
}

// EncryptGCM implements envelope.Token.
func (t *sessionToken) EncryptGCM(_ context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, plaintext []byte) (out []byte, err error) {
	r := t.pool.r
	r.nonces.Add(id)
	err = t.pool.on(func(s *readSession) error {
		out, err = r.api.EncryptGCM(time.Time{}, s.Session, t.held.handle, nonce[:], associated, plaintext)
		return err
	})
	return out, err
}

// EncryptOwnNonce implements envelope.Token.
func (t *sessionToken) EncryptOwnNonce(_ context.Context, _ envelope.KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	err = t.pool.on(func(s *readSession) error {
		nonce, sealed, err = t.pool.r.sealOwn(s.Session, t.held, associated, plaintext)
		return err
	})
	return nonce, sealed, err
}

// DecryptGCM implements envelope.Token. It takes a refusal for the ciphertext's fault: the self-test opens a sound one just
// before.
func (t *sessionToken) DecryptGCM(_ context.Context, _ envelope.KeyID, nonce, associated, sealed []byte) (out []byte, err error) {
	r := t.pool.r
	err = t.pool.on(func(s *readSession) error {
		out, err = r.api.DecryptGCM(time.Time{}, s.Session, t.held.handle, nonce, associated, sealed)
		if err == nil || classOf(err) != classData {
			return err
		}
		if err := t.pool.replace(s); err != nil {
			return err
		}
		return fmt.Errorf("%w: %w", envelope.ErrUnauthentic, err)
	})
	return out, err
}

// MAC implements envelope.Token.
func (t *sessionToken) MAC(_ context.Context, _ envelope.KeyID, data []byte) (mac [envelope.MACSize]byte, err error) {
	r := t.pool.r
	var out []byte
	err = t.pool.on(func(s *readSession) error {
		out, err = r.api.HMAC(time.Time{}, s.Session, t.held.handle, data)
		return err
	})
	if err != nil {
		return mac, err
	}
	defer clear(out)
	if len(out) != len(mac) {
		return mac, fmt.Errorf("%w: an HMAC of %d bytes", envelope.ErrSelfTest, len(out))
	}
	return [envelope.MACSize]byte(out), nil
}
