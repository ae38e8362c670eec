package limits

import (
	"container/list"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/nonblock"
)

// Cost of a request that has not been sent to its end, in bytes, at most: gRPC keeps the headers, the frames
// and a goroutine for it. Frames can have one byte each.
const (
	requestCost = 16 << 10
	frameCost   = 128
)

// maxStreams bounds what is remembered of one connection. The server allows fewer, and refuses what is too much.
const maxStreams = 4096

// conn follows the requests on one connection. As with any net.Conn, Read is called by one goroutine at a time, and Write too.
type conn struct {
	net.Conn
	reader   io.Reader // of Conn
	writer   io.Writer // of Conn
	listener *Listener
	place    *list.Element // among the unfinished; nil: finished or closed. Under the listener's lock.
	close    sync.Once

	in, out  frames // each its reader's or writer's own
	finished bool   // the preface is complete; the reader's own

	mu       sync.Mutex         // guards the fields below
	requests map[uint32]request // open, by stream
	idle     time.Time          // since when no request has been open
	answered bool               // at least one request was
	held     int64              // cost of those that have not been sent to their end
	gone     bool               // counted out: holds nothing any more
}

// request is an open one.
type request struct {
	began time.Time
	cost  int64 // 0: it was sent to its end
}

func newConn(raw net.Conn, l *Listener) *conn {
	c := &conn{Conn: raw, reader: raw, writer: raw, listener: l, in: frames{skip: prefaceSize}, requests: map[uint32]request{}, idle: time.Now()}
	socket, ok := raw.(*net.UnixConn)
	if !ok { // its descriptor, if it has one, need not be what carries its bytes
		return c
	}
	if r, err := nonblock.NewReader(socket); err == nil {
		c.reader = r
	}
	if w, err := nonblock.NewWriter(socket); err == nil {
		c.writer = w
	}
	return c
}

// Read reads, and notes what it reads. Whether that is right is the HTTP/2 server's to judge, which closes the connection if
// not.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.reader.Read(b)
	c.note(b[:n])
	return n, err
}

func (c *conn) note(b []byte) {
	c.mu.Lock()
	before := c.held
	c.in.feed(b, c.received)
	grown := c.held - before
	c.mu.Unlock()
	if !c.finished && c.in.one() {
		c.finished = true
		c.listener.finish(c)
	}
	if grown > 0 {
		c.listener.relieve()
	}
}

// received notes a frame of the peer. c.mu is held.
func (c *conn) received(f frame) {
	r, open := c.requests[f.stream]
	switch {
	case f.kind == frameHeaders && !open && len(c.requests) < maxStreams:
		r = request{began: time.Now()}
		r.cost = requestCost
		c.hold(r.cost)
	case f.kind == frameReset:
		c.ended(f.stream)
		return
	case !open || r.cost == 0:
		return
	case f.kind == frameData || f.kind == frameHeaders || f.kind == frameContinuation:
		cost := int64(f.length + frameCost)
		r.cost += cost
		c.hold(cost)
	default:
		return
	}
	if f.ends {
		c.hold(-r.cost)
		r.cost = 0
	}
	c.requests[f.stream] = r
}

// Write writes, and notes what the server answers.
func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.out.feed(b, func(f frame) {
		if f.ends || f.kind == frameReset {
			c.answered = c.answered || f.ends
			c.ended(f.stream)
		}
	})
	c.mu.Unlock()
	return c.writer.Write(b)
}

// ended forgets a request. c.mu is held.
func (c *conn) ended(stream uint32) {
	r, open := c.requests[stream]
	if !open {
		return
	}
	c.hold(-r.cost)
	delete(c.requests, stream)
	if len(c.requests) == 0 {
		c.idle = time.Now()
	}
}

// hold changes what is held. c.mu is held.
func (c *conn) hold(cost int64) {
	if c.gone {
		return
	}
	c.held += cost
	c.listener.held.Add(cost)
}

// letGo counts what is held out, once and for all.
func (c *conn) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold(-c.held)
	c.gone = true
}

// state is what decides whether a connection has to go.
type state struct {
	open       int
	idle       time.Time // since when, if none is open
	answered   bool
	held       int64
	unfinished time.Time // when the oldest request began that has not been sent to its end; zero: there is none
}

func (c *conn) state() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := state{open: len(c.requests), idle: c.idle, answered: c.answered, held: c.held}
	if c.held == 0 {
		return s
	}
	for _, r := range c.requests {
		if r.cost > 0 && (s.unfinished.IsZero() || r.began.Before(s.unfinished)) {
			s.unfinished = r.began
		}
	}
	return s
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
