// Package limits bounds what others can take of the plugin: connections, what their half-sent requests hold, and requests at
// work (Slots). It depends on nonblock. A listener, its connections and Slots are safe for concurrent use; the
// listener's lock is taken before a connection's.
//
// Who can connect can open connections and say nothing, or begin requests and not end them. When there are too many
// connections, one goes: the oldest that has not finished the HTTP/2 preface (24 bytes of magic and the first SETTINGS
// frame, RFC 9113 section 3.4), which a client that means it does within a millisecond; else, where half of all have had no
// request answered and have none open, the one of those that has been so for longest: between two calls of an API server its
// connection may be the one that was idle for longest; else the one that has been without an open request for longest; else
// one whose request has been half-sent for ten seconds. Only when every connection waits for an answer does the newcomer go.
// When half-sent requests hold too much, one of those connections goes that hold more
// than their share: the one whose request has been half-sent for longest.
package limits

import (
	"container/list"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Reason is why a connection was dropped.
type Reason string

// The reasons.
const (
	Unfinished Reason = "it had not finished the HTTP/2 preface"
	Silent     Reason = "it had no request answered"
	Idle       Reason = "it had no open request for longest"
	HalfSent   Reason = "it had begun requests and not ended them"
	Newcomer   Reason = "every other connection waits for an answer"
)

// halfSentLimit is how long a request can be half-sent before its connection goes for a new one. A client that means it
// sends a request at once.
const halfSentLimit = 10 * time.Second

// Config bounds the connections. Zero values are the defaults.
type Config struct {
	Unfinished int   // at most this many without a finished preface; default 32
	Total      int   // at most this many in all; default 48. An API server has one for each KMS provider entry.
	HalfSent   int64 // bytes that half-sent requests of all connections hold at most, about; default 32 MiB
	// Dropped is called with each connection that has to go, before it is closed, without locks held. It may be nil.
	Dropped func(c net.Conn, why Reason)
}

// Stats are the numbers of one listener.
type Stats struct {
	Open, Unfinished int
	Dropped          uint64 // since the start
	HalfSent         int64  // bytes that half-sent requests hold, about
}

// Listener is a listener that keeps to the bounds. All methods may be called from any number of goroutines.
type Listener struct {
	net.Listener
	cfg  Config
	held atomic.Int64 // the sum of what the connections hold

	mu         sync.Mutex // guards the fields below; a connection's comes after it
	open       map[*conn]struct{}
	unfinished *list.List // of *conn, oldest first
	dropped    uint64
}

// Limit bounds what lis accepts.
func Limit(lis net.Listener, cfg Config) *Listener {
	if cfg.Unfinished <= 0 {
		cfg.Unfinished = 32
	}
	if cfg.Total <= 0 {
		cfg.Total = 48
	}
	if cfg.HalfSent <= 0 {
		cfg.HalfSent = 32 << 20
	}
	if cfg.Dropped == nil {
		cfg.Dropped = func(net.Conn, Reason) {}
	}
	return &Listener{Listener: lis, cfg: cfg, open: map[*conn]struct{}{}, unfinished: list.New()}
}

// Stats returns the present numbers.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Open: len(l.open), Unfinished: l.unfinished.Len(), Dropped: l.dropped, HalfSent: l.held.Load()}
}

// Accept waits for the next connection that there is room for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := newConn(raw, l)
		victim, why := l.admit(c)
		if victim != nil {
			l.drop(victim, why)
		}
		if victim != c {
			return c, nil
		}
	}
}

// admit counts c in, and returns the connection that has to go for it, if one has to.
func (l *Listener) admit(c *conn) (victim *conn, why Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unfinished.Len() >= l.cfg.Unfinished || len(l.open) >= l.cfg.Total {
		victim, why = l.victim(c)
		l.forget(victim)
		l.dropped++
	}
	l.open[c] = struct{}{}
	if victim == c {
		return victim, why // Close counts it out
	}
	c.place = l.unfinished.PushBack(c)
	return victim, why
}

// victim is the connection that has to go for newcomer. l.mu is held.
func (l *Listener) victim(newcomer *conn) (*conn, Reason) {
	if oldest := l.unfinished.Front(); oldest != nil {
		return oldest.Value.(*conn), Unfinished
	}
	var silent, idle, half *conn
	var silentSince, idleSince, halfSince time.Time
	silents := 0
	for c := range l.open {
		s := c.state()
		if s.open == 0 && !s.answered {
			if silents++; silent == nil || s.idle.Before(silentSince) {
				silent, silentSince = c, s.idle
			}
		}
		switch {
		case s.open == 0 && (idle == nil || s.idle.Before(idleSince)):
			idle, idleSince = c, s.idle
		case s.open > 0 && !s.unfinished.IsZero() && (half == nil || s.unfinished.Before(halfSince)):
			half, halfSince = c, s.unfinished
		}
	}
	switch {
	case 2*silents >= l.cfg.Total:
		return silent, Silent
	case idle != nil:
		return idle, Idle
	case half != nil && time.Since(halfSince) > halfSentLimit:
		return half, HalfSent
	}
	return newcomer, Newcomer
}

// relieve drops connections until half-sent requests hold no more than they may. Of those that hold at least the average,
// the one goes whose request has been half-sent for longest: one that sends a whole burst of requests holds much for a
// moment, and is not it.
func (l *Listener) relieve() {
	for l.held.Load() > l.cfg.HalfSent {
		l.mu.Lock()
		var victim *conn
		var since time.Time
		average := l.held.Load() / int64(max(1, len(l.open)))
		for c := range l.open {
			s := c.state()
			if !s.unfinished.IsZero() && s.held >= average && (victim == nil || s.unfinished.Before(since)) {
				victim, since = c, s.unfinished
			}
		}
		if victim == nil { // it has ended by itself meanwhile
			l.mu.Unlock()
			return
		}
		l.forget(victim)
		l.dropped++
		l.mu.Unlock()
		l.drop(victim, HalfSent)
	}
}

func (l *Listener) drop(victim *conn, why Reason) {
	l.cfg.Dropped(victim.Conn, why)
	_ = victim.Close()
}

// finish takes c out of those that are dropped first.
func (l *Listener) finish(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetPlace(c)
}

// forgetPlace takes c out of those that are dropped first. l.mu is held.
func (l *Listener) forgetPlace(c *conn) {
	if c.place != nil {
		l.unfinished.Remove(c.place)
		c.place = nil
	}
}

// forget counts c out. l.mu is held.
func (l *Listener) forget(c *conn) {
	l.forgetPlace(c)
	delete(l.open, c)
	c.letGo()
}

func (l *Listener) gone(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(c)
}
