package audit

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// limitFileSize makes every write beyond max bytes of a file fail with EFBIG, partly done, as a full disk
// does. It is of the whole process, so only a helper process does it.
func limitFileSize(t *testing.T, most uint64) {
	t.Helper()
	var limit unix.Rlimit
	err := errors.Join(unix.Getrlimit(unix.RLIMIT_FSIZE, &limit))
	limit.Cur = min(most, limit.Max)
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_FSIZE, &limit)); err != nil {
		t.Fatal(err)
	}
}

// inHelper runs the test that calls it again, alone in a process, and returns true in that process.
func inHelper(t *testing.T) bool {
	t.Helper()
	const mark = "AUDIT_TEST_HELPER"
	if os.Getenv(mark) != "" {
		signal.Ignore(syscall.SIGXFSZ)
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if !strings.Contains(string(out), "--- PASS") {
		t.Errorf("the helper ran nothing:\n%s", out)
	}
	return false
}

// TestFullDisk fills the file system at every byte of two records: partial writes, partial recoveries.
func TestFullDisk(t *testing.T) {
	if !inHelper(t) {
		return
	}
	var log bytes.Buffer
	line := uint64(0) // length of one record with its newline, once known
	rooms := []uint64{0, 1, 2}
	for room := uint64(3); room < 1200; room += 7 {
		rooms = append(rooms, room)
	}
	for i := 0; i < len(rooms); i++ {
		room := rooms[i]
		path := trail(t)
		log.Reset()
		w := open(t, path, func(o *Options) {
			o.Required = false
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		before := uint64(w.size)
		record(t, w, 1, 1)
		if line == 0 {
			line = uint64(w.size) - before
			rooms = append(rooms, line-2, line-1, line, line+1, 2*line-1) // all but the newline fits
		}
		limitFileSize(t, uint64(w.size)+room)
		record(t, w, 2, 10)
		limitFileSize(t, uint64(w.size)+room/3) // a little room: a part of the recovery record
		record(t, w, 11, 12)
		lost := w.Stats().Lost
		if s := w.Stats(); !s.Failing || s.Lost == 0 || s.Failures < s.Lost {
			t.Fatalf("room %d: %+v", room, s)
		}
		limitFileSize(t, math.MaxUint64)
		record(t, w, 13, 13)
		if w.Stats().Failing {
			t.Fatalf("room %d: still failing", room)
		}
		closeIt(t, w)
		r := verify(t, path)
		if !r.OK || r.Lost != lost || r.Operations+int(r.Lost) != 13 {
			t.Fatalf("room %d: lost %d: %s", room, lost, show(r))
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != r.Recoveries {
			t.Fatalf("room %d: %d lines for %d outages:\n%s", room, n, r.Recoveries, log.String())
		}
	}
}

func TestFullDiskWhenRequired(t *testing.T) {
	if !inHelper(t) {
		return
	}
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 1)
	limitFileSize(t, uint64(w.size)+100)
	for range 3 {
		if err := w.Record(context.Background(), sample(2)); !errors.Is(err, syscall.EFBIG) {
			t.Fatalf("err = %v, want EFBIG", err)
		}
	}
	limitFileSize(t, math.MaxUint64)
	record(t, w, 3, 3)
	closeIt(t, w)
	r := verify(t, path)
	wantOK(t, r)
	if r.Operations != 2 || r.Lost != 3 || r.Recoveries != 1 {
		t.Error(show(r))
	}
	limitFileSize(t, 0)
	if w, err := Open(Options{Path: path, Required: true}); err == nil {
		t.Error("opened on a full disk though required", w.Close())
	}
	w, err := Open(Options{Path: path})
	if err != nil {
		t.Fatalf("not opened on a full disk though not required: %v", err)
	}
	record(t, w, 4, 4)
	limitFileSize(t, math.MaxUint64)
	closeIt(t, w)
	wantOK(t, verify(t, path))
}

func TestChangedByOthers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(path string) error
		ok     bool
		reason string
	}{
		"end cut off":   {func(p string) error { return os.Truncate(p, 700) }, false, ""},
		"line appended": {func(p string) error { return appendTo(p, "{}\n") }, false, "changed or added"},
		"part appended": {func(p string) error { return appendTo(p, "{") }, false, "changed or added"},
		// Emptied: what was there is gone, and the file begins with a recovery record.
		"emptied": {func(p string) error { return os.Truncate(p, 0) }, true, ""},
		"removed": {os.Remove, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := trail(t)
			w := open(t, path)
			record(t, w, 1, 3)
			if err := tc.change(path); err != nil {
				t.Fatal(err)
			}
			record(t, w, 4, 5)
			closeIt(t, w)
			r := verify(t, path)
			if r.OK != tc.ok || !strings.Contains(r.Reason, tc.reason) || r.Recoveries != 1 || r.LastSequence != 4+1+2+1 {
				t.Error(show(r))
			}
			if tc.ok && r.FirstSequence != 5 {
				t.Error(show(r))
			}
		})
	}
}

// An editor, or sed -i, puts another file in the trail's place. Nothing is written to that one, nor to the one that is gone:
// the outage is one, however often it is tried, it ends by itself when the file is moved away, and the trail tells
// of every operation that it lacks.
func TestReplacedByAnother(t *testing.T) {
	t.Parallel()
	path := trail(t)
	var log lockedLog
	w := open(t, path, func(o *Options) {
		o.Required = false
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	record(t, w, 1, 3)
	before := w.Stats().Sequence
	content, err := os.ReadFile(path)
	err = errors.Join(err, os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path))
	if err != nil {
		t.Fatal(err)
	}
	record(t, w, 4, 5)
	for range 3 { // as each second does
		if err := w.flush.flush(); err != nil {
			t.Fatal(err)
		}
	}
	record(t, w, 6, 6)
	if s := w.Stats(); !s.Failing || s.Lost != 3 || s.Sequence != before {
		t.Errorf("while another file is in the way: %+v, sequence before %d", s, before)
	}
	if text := log.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, "hint=\"move it away") || strings.Contains(text, "written again") {
		t.Errorf("the log:\n%s", text)
	}
	if err := os.Rename(path, path+".edited"); err != nil {
		t.Fatal(err)
	}
	if err := w.flush.flush(); err != nil {
		t.Fatal(err)
	}
	if w.Stats().Failing || !strings.Contains(log.String(), "written again") {
		t.Errorf("with nothing in the way: %+v\n%s", w.Stats(), log.String())
	}
	record(t, w, 7, 7)
	closeIt(t, w)
	if r := verify(t, path); !r.OK || r.Lost != 3 || r.Operations != 1 || r.FirstSequence != before+1 {
		t.Error(show(r))
	}
}

// lockedLog takes what the flusher and the test log at once.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
