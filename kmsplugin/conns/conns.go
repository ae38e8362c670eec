// Package conns bounds the connections of a listener. What may live here: counting, and choosing which to drop.
//
// Whoever can connect can open connections and say nothing. So those that have not finished the HTTP/2 preface (24 bytes
// of magic and the first SETTINGS frame, RFC 9113 section 3.4) are dropped first, oldest first, when there are too many:
// a client that means it finishes within a millisecond, and an established connection is never dropped for another.
package conns

import (
	"container/list"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// Config bounds the connections. Zero values are the defaults.
type Config struct {
	Unfinished int // at most this many without a finished preface; default 32
	// Total is at most this many in all; default 48. An API server has one for each KMS provider entry. Each may hold as many
	// half-open requests as the server allows streams (512), at 6 KiB: more connections could fill the static pod's 256 MiB.
	Total   int
	Dropped func() // told of each connection dropped, without locks held; nil: nobody is
}

// Stats are the numbers of one listener.
type Stats struct {
	Open, Unfinished int
	Dropped          uint64 // since the start
}

// Listener is a listener that keeps to the bounds. All methods may be called from any number of goroutines.
type Listener struct {
	net.Listener
	cfg Config

	mu         sync.Mutex
	open       int
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
	if cfg.Dropped == nil {
		cfg.Dropped = func() {}
	}
	return &Listener{Listener: lis, cfg: cfg, unfinished: list.New()}
}

// Stats returns the present numbers.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Open: l.open, Unfinished: l.unfinished.Len(), Dropped: l.dropped}
}

// Accept waits for the next connection that there is room for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, listener: l}
		victim := l.admit(c)
		if victim != nil {
			_ = victim.Close()
			l.cfg.Dropped()
		}
		if victim != c {
			return c, nil
		}
	}
}

// admit counts c in, and returns the connection that has to go for it: c itself when all others are established.
func (l *Listener) admit(c *conn) (victim *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unfinished.Len() >= l.cfg.Unfinished || l.open >= l.cfg.Total {
		victim = c
		if oldest := l.unfinished.Front(); oldest != nil {
			victim = oldest.Value.(*conn)
			l.forgetPlace(victim)
		}
		l.dropped++
	}
	c.place = l.unfinished.PushBack(c)
	l.open++
	return victim
}

// finish takes c out of those that may be dropped.
func (l *Listener) finish(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetPlace(c)
}

func (l *Listener) forgetPlace(c *conn) {
	if c.place != nil {
		l.unfinished.Remove(c.place)
		c.place = nil
	}
}

func (l *Listener) gone(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetPlace(c)
	l.open--
}

const (
	prefaceSize     = 24 // "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeaderSize = 9  // RFC 9113 section 4.1: the first three bytes are the length of what follows
)

// conn watches its first bytes. As with any net.Conn, Read is called by one goroutine at a time.
type conn struct {
	net.Conn
	listener *Listener
	place    *list.Element // among the unfinished; nil: finished or closed. Under the listener's lock.
	close    sync.Once

	seen     int // bytes read, until finished
	needed   int // bytes of preface and first frame; 0: the frame's length is not known yet
	length   [3]byte
	finished bool
}

// Read reads, and notes when the preface is complete. Whether its bytes are right is the HTTP/2 server's to judge, which
// closes the connection if not.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.finished {
		c.note(b[:n])
	}
	return n, err
}

func (c *conn) note(b []byte) {
	for i := range c.length {
		if at := prefaceSize + i - c.seen; at >= 0 && at < len(b) {
			c.length[i] = b[at]
		}
	}
	c.seen += len(b)
	if c.needed == 0 && c.seen >= prefaceSize+len(c.length) {
		c.needed = prefaceSize + frameHeaderSize + int(c.length[0])<<16 + int(c.length[1])<<8 + int(c.length[2])
	}
	if c.needed > 0 && c.seen >= c.needed {
		c.finished = true
		c.listener.finish(c)
	}
}

// Close closes the connection and counts it out, once.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.close.Do(func() { c.listener.gone(c) })
	return err
}

// SyscallConn lets the peer's credentials be read.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, fmt.Errorf("a connection of type %T has no descriptor", c.Conn)
}
