package nonblock

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// end is what a pipe's end and a connection have in common.
type end interface {
	syscall.Conn
	io.Closer
	SetDeadline(time.Time) error
}

// pairs are the kinds of descriptors that are used, each with its two ends.
var pairs = map[string]func(t *testing.T) (from, to end){
	"pipe": func(t *testing.T) (from, to end) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return r, w
	},
	"socket": func(t *testing.T) (from, to end) {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return r.(*net.UnixConn), w.(*net.UnixConn)
	},
}

// each runs f on both kinds.
func each(t *testing.T, f func(t *testing.T, r *Reader, w *Writer, from, to end)) {
	t.Parallel()
	for name, make := range pairs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from, to := make(t)
			t.Cleanup(func() { _, _ = from.Close(), to.Close() })
			r, err := NewReader(from)
			if err != nil {
				t.Fatal(err)
			}
			w, err := NewWriter(to)
			if err != nil {
				t.Fatal(err)
			}
			f(t, r, w, from, to)
		})
	}
}

// TestAllArrives: more than a pipe or socket has room for, so that both sides wait for each other, and then the end.
func TestAllArrives(t *testing.T) {
	each(t, func(t *testing.T, r *Reader, w *Writer, _, to end) {
		sent := bytes.Repeat([]byte("0123456789abcde"), 1<<17)
		wrote := make(chan error, 1)
		go func() {
			n, err := w.Write(sent)
			if err == nil && n != len(sent) {
				err = io.ErrShortWrite
			}
			wrote <- errors.Join(err, to.Close())
		}()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes, or others: %v", len(got), len(sent), err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		if n, err := r.Read(nil); n != 0 || err != nil {
			t.Errorf("reading nothing at the end: %d, %v", n, err)
		}
	})
}

// TestNobodyReads: a write fails when the other end is gone, and the process lives.
func TestNobodyReads(t *testing.T) {
	each(t, func(t *testing.T, _ *Reader, w *Writer, from, _ end) {
		if err := from.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := w.Write([]byte("x")); n != 0 || !errors.Is(err, unix.EPIPE) {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// TestDeadline: both directions keep it, and what got through is counted.
func TestDeadline(t *testing.T) {
	each(t, func(t *testing.T, r *Reader, w *Writer, from, to end) {
		if err := from.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading: %d, %v", n, err)
		}
		type outcome struct {
			n   int
			err error
		}
		const more = 8 << 20 // than there is room for
		wrote := make(chan outcome, 1)
		go func() {
			n, err := w.Write(make([]byte, more))
			wrote <- outcome{n, err}
		}()
		if err := from.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Fatalf("reading what was written: %d, %v", n, err)
		}
		if err := to.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if o := <-wrote; o.n == 0 || o.n == more || !errors.Is(o.err, os.ErrDeadlineExceeded) {
			t.Errorf("writing: %d, %v", o.n, o.err)
		}
	})
}

// TestClosedMeanwhile: a read that waits ends when its own end is closed.
func TestClosedMeanwhile(t *testing.T) {
	each(t, func(t *testing.T, r *Reader, _ *Writer, from, _ end) {
		ended := make(chan error, 1)
		go func() {
			_, err := r.Read(make([]byte, 1))
			ended <- err
		}()
		if err := from.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Error("no error")
		}
	})
}

// TestRaceDetector: under the race detector what happens before a write happens before the read of what it wrote, as with
// os.File and net.Conn, whichever side uses those.
func TestRaceDetector(t *testing.T) {
	each(t, func(t *testing.T, r *Reader, w *Writer, from, to end) {
		for name, ends := range map[string]struct {
			io.Reader
			io.Writer
		}{
			"both":  {r, w},
			"read":  {r, to.(io.Writer)},
			"write": {from.(io.Reader), w},
		} {
			said, wrote := "", make(chan struct{})
			go func() {
				defer close(wrote)
				said = name
				_, _ = ends.Write([]byte("x"))
			}()
			if n, err := ends.Read(make([]byte, 1)); n != 1 || err != nil || said != name {
				t.Errorf("%s: %d, %v: %q", name, n, err, said)
			}
			<-wrote
		}
	})
}

// TestNoAllocation: they are on the path of each request.
func TestNoAllocation(t *testing.T) {
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = from.Close(), to.Close() }()
	r, readErr := NewReader(from)
	w, writeErr := NewWriter(to)
	if err := errors.Join(readErr, writeErr); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	if n := testing.AllocsPerRun(100, func() {
		_, writeErr = w.Write(b)
		_, readErr = r.Read(b)
	}); n != 0 || writeErr != nil || readErr != nil {
		t.Errorf("%v allocations: %v, %v", n, writeErr, readErr)
	}
}
