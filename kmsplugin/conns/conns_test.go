package conns

import (
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
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
			c := &conn{listener: limited}
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
	l, dial := listen(t, Config{Unfinished: 2, Total: 10, Dropped: func() { dropped <- struct{}{} }})
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

// When all are established, the newcomer is the one to go.
func TestTotal(t *testing.T) {
	t.Parallel()
	l, dial := listen(t, Config{Unfinished: 2, Total: 3})
	var conns []net.Conn
	for i := range 3 {
		conns = append(conns, dial())
		if _, err := conns[i].Write([]byte(hello)); err != nil {
			t.Fatal(err)
		}
		eventually(t, l, "established", func(s Stats) bool { return s.Open == i+1 && s.Unfinished == 0 })
	}
	late := dial()
	eventually(t, l, "the newcomer goes", func(s Stats) bool { return s.Dropped == 1 })
	if !closed(t, late) {
		t.Error("the newcomer is there")
	}
	_ = conns[0].Close()
	eventually(t, l, "there is room", func(s Stats) bool { return s.Open == 2 })
	next := dial()
	eventually(t, l, "accepted", func(s Stats) bool { return s.Open == 3 })
	for _, conn := range append(conns[1:], next) {
		_ = conn.Close()
	}
	eventually(t, l, "all are counted out", func(s Stats) bool { return s.Open == 0 && s.Unfinished == 0 })
}
