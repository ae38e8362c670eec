package limits

import (
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hello is the preface of a client and an empty SETTINGS frame.
const hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// helloWithSettings has one setting of six bytes.
const helloWithSettings = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x03\x00\x00\x00\x64"

// listen accepts and reads each connection until it ends.
func listen(t *testing.T, cfg Config) (*Listener, func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	raw, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := Limit(raw, cfg)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
				_ = conn.Close() // counted once
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l, func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
}

func eventually(t *testing.T, l *Listener, what string, ok func(Stats) bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(l.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s; %+v", what, l.Stats())
		}
	}
}

func closed(t *testing.T, conn net.Conn) bool {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	timeout, ok := err.(net.Error)
	return err != nil && !(ok && timeout.Timeout())
}

func TestWhenAPrefaceIsFinished(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"empty settings": hello, "settings": helloWithSettings} {
		for _, step := range []int{1, 2, 7, 23, 24, 25, 26, 27, 33, 100} {
			limited := Limit(nil, Config{})
			c := newConn(nil, limited)
			limited.admit(c)
			for at := 0; at < len(text); at += step {
				if c.finished {
					t.Errorf("%s in steps of %d: finished after %d of %d bytes", name, step, at, len(text))
				}
				c.note([]byte(text[at:min(at+step, len(text))]))
			}
			if !c.finished || limited.Stats().Unfinished != 0 {
				t.Errorf("%s in steps of %d: not finished", name, step)
			}
		}
	}
}

func TestOldestUnfinishedGoesFirst(t *testing.T) {
	t.Parallel()
	dropped := make(chan struct{}, 100)
	l, dial := listen(t, Config{Unfinished: 2, Total: 10, Dropped: func(net.Conn, Reason) { dropped <- struct{}{} }})
	established := dial()
	if _, err := established.Write([]byte(hello)); err != nil {
		t.Fatal(err)
	}
	eventually(t, l, "one is established", func(s Stats) bool { return s.Open == 1 && s.Unfinished == 0 })
	var silent []net.Conn
	for i := range 5 {
		silent = append(silent, dial())
		eventually(t, l, "it is accepted", func(s Stats) bool { return s.Unfinished == min(i+1, 2) && s.Open == 1+min(i+1, 2) })
		if i >= 2 {
			<-dropped
		}
	}
	for i, conn := range silent {
		if got, want := closed(t, conn), i < 3; got != want {
			t.Errorf("connection %d of 5 closed: %v, want %v", i, got, want)
		}
	}
	if closed(t, established) {
		t.Error("the established connection was dropped")
	}
	if s := l.Stats(); s.Dropped != 3 {
		t.Errorf("%+v", s)
	}
}

// frameOf is the header of a frame, and a payload of zeros.
func frameOf(kind, flags byte, stream uint32, length int) string {
	return string([]byte{byte(length >> 16), byte(length >> 8), byte(length), kind, flags,
		byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}) + strings.Repeat("\x00", length)
}

const endStream = 0x1

// established is a connection of a listener that has said hello.
func established(t *testing.T, l *Listener, dial func() net.Conn, want int) net.Conn {
	t.Helper()
	conn := dial()
	if _, err := conn.Write([]byte(hello)); err != nil {
		t.Fatal(err)
	}
	eventually(t, l, "established", func(s Stats) bool { return s.Open == want && s.Unfinished == 0 })
	return conn
}

// When there are too many and all are established, the one goes that has been idle for longest, of those that had no answer.
func TestIdleLongestGoes(t *testing.T) {
	t.Parallel()
	reasons := make(chan Reason, 10)
	l, dial := listen(t, Config{Unfinished: 2, Total: 3, Dropped: func(_ net.Conn, why Reason) { reasons <- why }})
	var conns []net.Conn
	for i := range 3 {
		conns = append(conns, established(t, l, dial, i+1))
	}
	// The oldest has a request open, and the next asks once more.
	for i, text := range []string{frameOf(frameHeaders, 0, 1, 10) + frameOf(frameData, endStream, 1, 10), frameOf(frameHeaders, endStream, 1, 10) + frameOf(frameReset, 0, 1, 4)} {
		if _, err := conns[i].Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, l, "requests are seen", func(Stats) bool { return opened(l) == 1 })
	established(t, l, dial, 3)
	if why := <-reasons; why != Silent {
		t.Errorf("reason: %s", why)
	}
	for i, want := range []bool{false, false, true} {
		if got := closed(t, conns[i]); got != want {
			t.Errorf("connection %d closed: %v", i, got)
		}
	}
}

// Connections that ask for nothing do not push out one that was served, although that one has been idle for longer. Where few are
// silent, the one goes that was idle for longest: a newcomer that has not asked yet must not.
func TestServedConnectionStays(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		served, silent int
		victim         int // the served come first
		why            Reason
	}{
		"one served":      {1, 5, 1, Silent},
		"half are silent": {3, 3, 3, Silent},
		"few are silent":  {4, 2, 0, Idle},
		"all served":      {6, 0, 0, Idle},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := Limit(nil, Config{Total: 6})
				var conns []*conn
				for i := range tc.served + tc.silent {
					ours, theirs := net.Pipe()
					defer func() { _ = theirs.Close() }()
					go func() { _, _ = io.Copy(io.Discard, theirs) }()
					c := newConn(ours, l)
					if victim, _ := l.admit(c); victim != nil {
						t.Fatal("no room")
					}
					c.note([]byte(hello))
					if i < tc.served {
						c.note([]byte(frameOf(frameHeaders, endStream, 1, 10)))
						if _, err := c.Write([]byte(frameOf(frameHeaders, endStream, 1, 3))); err != nil {
							t.Fatal(err)
						}
					}
					conns = append(conns, c)
					time.Sleep(time.Second)
				}
				if victim, why := l.admit(newConn(nil, l)); victim != conns[tc.victim] || why != tc.why {
					t.Errorf("connection %d goes: %s", slices.Index(conns, victim), why)
				}
			})
		})
	}
}

// opened counts the open requests.
func opened(l *Listener) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		n += c.state().open
	}
	return n
}

// Connections that wait for answers stay; among those whose request is half-sent, the oldest goes, after a while.
func TestBusyConnectionsStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := Limit(nil, Config{Total: 2})
		var conns []*conn
		for _, text := range []string{frameOf(frameHeaders, endStream, 1, 10), frameOf(frameHeaders, 0, 1, 10)} {
			c := newConn(nil, l)
			if victim, _ := l.admit(c); victim != nil {
				t.Fatal("no room")
			}
			c.note([]byte(hello + text))
			conns = append(conns, c)
		}
		late := newConn(nil, l)
		if victim, why := l.admit(late); victim != late || why != Newcomer {
			t.Errorf("at once: %v goes: %s", victim, why)
		}
		l.gone(late)
		time.Sleep(halfSentLimit + time.Second)
		if victim, why := l.admit(newConn(nil, l)); victim != conns[1] || why != HalfSent {
			t.Errorf("after a while: %v goes: %s", victim, why)
		}
	})
}

// Bytes are counted frame by frame, and given back when a request is sent, taken back, answered or cut off.
func TestWhatHalfSentRequestsHold(t *testing.T) {
	t.Parallel()
	half := frameOf(frameHeaders, 0, 1, 100) + frameOf(frameData, 0, 1, 1000)
	const cost = requestCost + 1000 + frameCost
	for name, tc := range map[string]struct {
		in, out string
		held    int64
		open    int
	}{
		"half-sent":          {half, "", cost, 1},
		"sent":               {half + frameOf(frameData, endStream, 1, 0), "", 0, 1},
		"with the headers":   {frameOf(frameHeaders, endStream, 1, 100), "", 0, 1},
		"taken back":         {half + frameOf(frameReset, 0, 1, 4), "", 0, 0},
		"answered":           {half, frameOf(frameHeaders, 0, 1, 5) + frameOf(frameData, 0, 1, 7) + frameOf(frameHeaders, endStream, 1, 3), 0, 0},
		"refused":            {half, frameOf(frameReset, 0, 1, 4), 0, 0},
		"two":                {half + frameOf(frameHeaders, 0, 3, 0), "", cost + requestCost, 2},
		"other frames":       {half + frameOf(6, endStream, 0, 8) + frameOf(8, 0, 1, 4), frameOf(6, 1, 0, 8), cost, 1},
		"continued headers":  {frameOf(frameHeaders, 0, 1, 100) + frameOf(frameContinuation, 0, 1, 50), "", requestCost + 50 + frameCost, 1},
		"data of no request": {frameOf(frameData, 0, 1, 100), "", 0, 0},
	} {
		for _, step := range []int{1, 8, 9, 10, 4096} {
			l := Limit(nil, Config{})
			ours, theirs := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			c := newConn(ours, l)
			l.admit(c)
			text := hello + tc.in
			for at := 0; at < len(text); at += step {
				c.note([]byte(text[at:min(at+step, len(text))]))
			}
			for at := 0; at < len(tc.out); at += step {
				if _, err := c.Write([]byte(tc.out[at:min(at+step, len(tc.out))])); err != nil {
					t.Fatal(err)
				}
			}
			if s := c.state(); s.held != tc.held || s.open != tc.open || l.Stats().HalfSent != tc.held {
				t.Errorf("%s in steps of %d: %+v, all %d; want %d", name, step, s, l.Stats().HalfSent, tc.held)
			}
			_ = c.Close()
			_ = theirs.Close()
			if s := l.Stats(); s.HalfSent != 0 || s.Open != 0 {
				t.Errorf("%s: after the end %+v", name, s)
			}
		}
	}
}

// The connection goes whose requests have been half-sent for longest, and not one that sends many at this moment.
func TestHalfSentRequestsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dropped []net.Conn
		l := Limit(nil, Config{HalfSent: 100 * requestCost, Dropped: func(c net.Conn, why Reason) {
			if why != HalfSent {
				t.Errorf("reason: %s", why)
			}
			dropped = append(dropped, c)
		}})
		begin := func(c *conn, n int) {
			for i := range n {
				c.note([]byte(frameOf(frameHeaders, 0, uint32(2*i+1), 10)))
			}
		}
		var conns []*conn
		for range 4 {
			ours, theirs := net.Pipe()
			defer func() { _ = theirs.Close() }()
			c := newConn(ours, l)
			l.admit(c)
			c.note([]byte(hello))
			conns = append(conns, c)
		}
		begin(conns[1], 5) // the oldest, with less than its share
		time.Sleep(time.Second)
		begin(conns[2], 40)
		time.Sleep(time.Second)
		begin(conns[0], 60)
		if len(dropped) != 1 || dropped[0] != conns[2].Conn {
			t.Errorf("dropped %v", dropped)
		}
		if held := l.Stats().HalfSent; held > l.cfg.HalfSent || held < 60*requestCost {
			t.Errorf("%d bytes are held", held)
		}
	})
}

// FuzzFrames: however bytes are cut, and whatever they are, the frames are the same and nothing is held below zero.
func FuzzFrames(f *testing.F) {
	f.Add([]byte(hello+frameOf(frameHeaders, 0, 1, 100)+frameOf(frameData, 0, 1, 3)), uint8(3))
	f.Fuzz(func(t *testing.T, text []byte, step uint8) {
		whole, cut := newConn(nil, Limit(nil, Config{})), newConn(nil, Limit(nil, Config{}))
		whole.listener.admit(whole)
		cut.listener.admit(cut)
		whole.note(text)
		for at, n := 0, int(step)+1; at < len(text); at += n {
			cut.note(text[at:min(at+n, len(text))])
		}
		a, b := whole.state(), cut.state()
		if a.held != b.held || a.open != b.open || a.held < 0 || whole.finished != cut.finished || a.open > maxStreams {
			t.Errorf("%+v and %+v", a, b)
		}
	})
}
