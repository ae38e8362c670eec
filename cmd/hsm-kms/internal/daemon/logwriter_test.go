package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hangingWriter is stderr at the end of which nobody reads until go is closed.
type hangingWriter struct {
	release chan struct{}
	mu      sync.Mutex
	b       bytes.Buffer
}

func (h *hangingWriter) Write(p []byte) (int, error) {
	<-h.release
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(p)
}

func TestLogThatHangsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out := &hangingWriter{release: make(chan struct{})}
		w := newLogWriter(out)
		log := slog.New(slog.NewTextHandler(w, nil))
		const lines = logBacklog + 500
		began := time.Now()
		for i := range lines {
			log.Info("line", "n", i)
		}
		if took := time.Since(began); took > logPatience {
			t.Errorf("%d lines took %s", lines, took)
		}
		close(out.release)
		synctest.Wait()
		log.Info("the last")
		w.Close()
		text := out.b.String()
		if written := strings.Count(text, "msg=line"); written < logBacklog || written == lines {
			t.Errorf("%d lines were written", written)
		} else if want := fmt.Sprintf("%d log lines are missing here", lines-written); !strings.Contains(text, want) {
			t.Errorf("no %q in the log", want)
		}
		if !strings.HasSuffix(text, "msg=\"the last\"\n") {
			t.Error("the last line is missing")
		}
	})
}

// While nothing hangs, a line is written when the call returns: a crash right afterwards does not lose it.
func TestLogLineIsWrittenAtOnce(t *testing.T) {
	t.Parallel()
	out := &hangingWriter{release: make(chan struct{})}
	close(out.release)
	w := newLogWriter(out)
	defer w.Close()
	for i := range 100 {
		_, _ = fmt.Fprintf(w, "line %d\n", i)
		out.mu.Lock()
		if !strings.HasSuffix(out.b.String(), fmt.Sprintf("line %d\n", i)) {
			t.Errorf("line %d is not written", i)
		}
		out.mu.Unlock()
	}
	_, _ = w.Write(bytes.Repeat([]byte("x"), 2*maxLogLine))
	out.mu.Lock()
	defer out.mu.Unlock()
	if !strings.HasSuffix(out.b.String(), "xx\n") || out.b.Len() > maxLogLine+2000 {
		t.Errorf("a long line has %d bytes", out.b.Len())
	}
}
