// Package nonblock reads and writes pipes and sockets in system calls that the Go scheduler is not told of. Such a
// descriptor does not block: a call returns at once, and the goroutine waits in Go's network poller, as with os.File and
// net.Conn, deadlines included.
//
// os.File and net.Conn do more, which is of no use here and costs: at each call the runtime's monitor thread (sysmon)
// is woken if it sleeps, and while it is awake it gives the processor to another thread when a call takes long, which a
// call that wakes another process does on a busy machine. With GOMAXPROCS=1 that was a fifth of the time.
//
// It depends on no other package. One goroutine at a time may use a Reader, and one a Writer.
package nonblock

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reader is an io.Reader of a pipe or socket, which its own methods close.
type Reader struct {
	conn syscall.RawConn
	try  func(fd uintptr) bool // tryRead, once: made at each call it would be on the heap
	into []byte
	n    int
	err  error
}

// NewReader returns a reader of c, a pipe or socket on Go's network poller.
func NewReader(c syscall.Conn) (*Reader, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &Reader{conn: conn}
	r.try = r.tryRead
	return r, nil
}

// Read implements io.Reader. The other side's end is io.EOF.
func (r *Reader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	r.into, r.n, r.err = b, 0, nil
	err := r.conn.Read(r.try)
	r.into = nil
	if err == nil {
		err = r.err
	}
	return r.n, err
}

// tryRead reports whether there was something to read, or will never be.
func (r *Reader) tryRead(fd uintptr) bool {
	n, err := retry(read, fd, r.into)
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		r.err = err
	case n == 0:
		r.err = io.EOF
	}
	r.n = n
	return true
}

// Writer is an io.Writer of a pipe or socket, which its own methods close.
type Writer struct {
	conn syscall.RawConn
	try  func(fd uintptr) bool // tryWrite, once
	rest []byte
	err  error
}

// NewWriter returns a writer of c, a pipe or socket on Go's network poller.
func NewWriter(c syscall.Conn) (*Writer, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &Writer{conn: conn}
	w.try = w.tryWrite
	return w, nil
}

// Write implements io.Writer.
func (w *Writer) Write(b []byte) (int, error) {
	w.rest, w.err = b, nil
	err := w.conn.Write(w.try)
	n := len(b) - len(w.rest)
	w.rest = nil
	if err == nil {
		err = w.err
	}
	return n, err
}

// tryWrite reports whether all is written, or will never be.
func (w *Writer) tryWrite(fd uintptr) bool {
	for len(w.rest) > 0 {
		n, err := retry(write, fd, w.rest)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			w.err = err
			return true
		}
		w.rest = w.rest[n:]
	}
	return true
}

// retry makes the call until no signal interrupts it.
func retry(call func(fd uintptr, b []byte) (int, error), fd uintptr, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		default:
			return 0, err
		}
	}
}
