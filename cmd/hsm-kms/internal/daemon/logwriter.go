package daemon

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Bounds of a logWriter.
const (
	logPatience = 100 * time.Millisecond // how long a line is waited for, so that a crash loses none while all is well
	logBacklog  = 1024                   // lines
	maxLogLine  = 16 << 10               // bytes that are kept of one
)

// logWriter passes log lines on to a writer that may hang: a pipe that nobody reads, a journal whose disk hangs. A line is
// waited for as long as logPatience, and none is waited for while an earlier one hangs; what the backlog does not hold is
// dropped, and counted in a line of its own. So nothing that logs, requests and health checks among it, can be held up.
// Safe for concurrent use.
type logWriter struct {
	out   io.Writer
	lines chan logLine
	done  chan struct{}

	mu      sync.Mutex // guards the fields below
	late    bool       // an earlier line was not written in time
	dropped int
	closed  bool
}

type logLine struct {
	text    []byte
	written chan struct{} // closed when it is
}

func newLogWriter(out io.Writer) *logWriter {
	w := &logWriter{out: out, lines: make(chan logLine, logBacklog), done: make(chan struct{})}
	go w.run()
	return w
}

// Write never fails: a logger has nobody to tell.
func (w *logWriter) Write(p []byte) (int, error) {
	line := logLine{text: append([]byte(nil), p[:min(len(p), maxLogLine)]...), written: make(chan struct{})}
	if len(p) > maxLogLine {
		line.text = append(line.text, '\n')
	}
	if w.enqueue(line) {
		w.wait(line)
	}
	return len(p), nil
}

// enqueue reports whether the line is to be waited for.
func (w *logWriter) enqueue(line logLine) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	select {
	case w.lines <- line:
		return !w.late
	default:
		w.dropped++
		return false
	}
}

func (w *logWriter) wait(line logLine) {
	timer := time.NewTimer(logPatience)
	defer timer.Stop()
	select {
	case <-line.written:
	case <-timer.C:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.late = true
	}
}

func (w *logWriter) run() {
	defer close(w.done)
	for line := range w.lines {
		_, _ = w.out.Write(line.text) // nobody to tell
		close(line.written)
		if len(w.lines) > 0 {
			continue
		}
		w.mu.Lock()
		dropped := w.dropped
		w.late, w.dropped = false, 0
		w.mu.Unlock()
		if dropped > 0 {
			_, _ = fmt.Fprintf(w.out, "hsm-kms: %d log lines are missing here: stderr took none for a time\n", dropped)
		}
	}
}

// Close writes what is left, and waits for that as long as for one line.
func (w *logWriter) Close() {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	close(w.lines)
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-time.After(logPatience):
	}
}
