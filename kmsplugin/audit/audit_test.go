package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
)

// sample is the n-th record of a test.
func sample(n int) Record {
	return Record{
		Time:       time.Date(2026, 2, 3, 4, 5, 6, 7000*n, time.UTC),
		Operation:  "Decrypt",
		RequestUID: fmt.Sprintf("5f2c0000-0000-4000-8000-%012d", n),
		KeyID:      "kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef",
		Code:       "OK",
		Duration:   123456 * time.Nanosecond,
		Peer:       Peer{PID: 42, UID: 0, Executable: "/usr/local/bin/kube-apiserver"},
	}
}

func open(t testing.TB, path string, change ...func(*Options)) *Writer {
	t.Helper()
	opts := Options{Path: path, Required: true}
	for _, c := range change {
		c(&opts)
	}
	w, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func record(t testing.TB, w *Writer, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if err := w.Record(context.Background(), sample(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func closeIt(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func verify(t testing.TB, paths ...string) Result {
	t.Helper()
	r, err := Verify("", paths...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantOK(t testing.TB, r Result) {
	t.Helper()
	if !r.OK || r.FirstBad != nil {
		t.Fatalf("the chain does not hold: %s", show(r))
	}
}

func show(r Result) string {
	b, _ := json.Marshal(r)
	return string(b)
}

// crash lets go of the file as the end of a process does: no end record, no lock.
func crash(w *Writer) {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	_ = w.flush.stop()
	_ = filelock.Release(w.file)
}

func readLines(t testing.TB, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(b)))
}

func trail(t testing.TB) string { return filepath.Join(t.TempDir(), "audit.log") }

func TestRecordsAreReadable(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 2)
	special := sample(3)
	special.RequestUID = "a\"\x1b[2J\n\u202e\u009bb\xff"
	special.KeyID = strings.Repeat("é", 400)
	special.Object, special.Reason = "/registry/secrets/a/b", "restore"
	if err := w.Record(context.Background(), special); err != nil {
		t.Fatal(err)
	}
	closeIt(t, w)

	lines := readLines(t, path)
	if len(lines) != 5 {
		t.Fatalf("%d lines, want started, three records, ended", len(lines))
	}
	wantPrefix := `{"time":"2026-02-03T04:05:06.000007Z","sequence":2,"operation":"Decrypt","requestUID":"5f2c0000-0000-4000-8000-000000000001",` +
		`"keyID":"kube-secrets/hk1-019ab3c4d5e6-0011223344556677-89abcdef/0123456789abcdef","code":"OK","duration":0.000123,` +
		`"peer":{"pid":42,"uid":0,"executable":"/usr/local/bin/kube-apiserver"},"previous":"`
	if !strings.HasPrefix(lines[1], wantPrefix) {
		t.Errorf("line 2 = %s\nwant prefix %s", lines[1], wantPrefix)
	}
	var got struct {
		RequestUID, KeyID, Object, Reason string
	}
	if err := json.Unmarshal([]byte(lines[3]), &got); err != nil {
		t.Fatal(err)
	}
	if want := "a\"\x1b[2J\n\ufffd\ufffdb\ufffd"; got.RequestUID != want {
		t.Errorf("requestUID = %q, want %q", got.RequestUID, want)
	}
	if want := strings.Repeat("é", 128) + "...(800 bytes)"; got.KeyID != want {
		t.Errorf("keyID = %q, want %q", got.KeyID, want)
	}
	if got.Object != special.Object || got.Reason != special.Reason {
		t.Errorf("object and reason = %q, %q", got.Object, got.Reason)
	}
	for i, c := range []byte(strings.Join(lines, "")) {
		if c < 0x20 && c != '\n' {
			t.Fatalf("control character %#x at %d", c, i)
		}
	}
	r := verify(t, path)
	wantOK(t, r)
	want := Result{Records: 5, OK: true, Operations: 3, FirstSequence: 1, LastSequence: 5, LastHash: r.LastHash, End: EndEnded}
	if d := cmp.Diff(want, r); d != "" {
		t.Error(d)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestChainGoesOnAcrossProcesses(t *testing.T) {
	t.Parallel()
	path := trail(t)
	for i := range 4 {
		w := open(t, path)
		record(t, w, 1, i)
		closeIt(t, w)
	}
	r := verify(t, path)
	wantOK(t, r)
	if r.Records != 8+0+1+2+3 || r.LastSequence != uint64(r.Records) || r.Recoveries != 0 {
		t.Error(show(r))
	}
}

func TestRecordAfterCloseIsAnError(t *testing.T) {
	t.Parallel()
	w := open(t, trail(t))
	closeIt(t, w)
	if err := w.Record(context.Background(), sample(1)); !errors.Is(err, errClosed) {
		t.Errorf("err = %v", err)
	}
	if err := w.Reopen(); !errors.Is(err, errClosed) {
		t.Errorf("Reopen: err = %v", err)
	}
}

func TestOwnNamesAreRefused(t *testing.T) {
	t.Parallel()
	w := open(t, trail(t))
	r := sample(1)
	r.Operation = opEnded
	if err := w.Record(context.Background(), r); err == nil {
		t.Error("a caller wrote one of the chain's own records")
	}
}

func TestFlushesOnlyAfterAWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var flushed atomic.Int64
		var failure atomic.Pointer[error]
		ioError := errors.New("input/output error")
		w := open(t, trail(t), func(o *Options) {
			o.sync = func(*os.File) error {
				flushed.Add(1)
				if err := failure.Load(); err != nil {
					return *err
				}
				return nil
			}
		})
		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		wait(flushInterval)
		if n := flushed.Load(); n != 1 {
			t.Fatalf("%d flushes after opening, want 1", n)
		}
		wait(time.Hour)
		if n := flushed.Load(); n != 1 {
			t.Fatalf("%d flushes in an idle hour, want none more", n)
		}
		record(t, w, 1, 100)
		wait(flushInterval)
		if n := flushed.Load(); n != 2 {
			t.Fatalf("%d flushes after 100 records, want one more", n)
		}

		failure.Store(&ioError)
		record(t, w, 1, 1)
		wait(flushInterval)
		if err := w.Record(context.Background(), sample(2)); !errors.Is(err, ioError) {
			t.Fatalf("err = %v: a required trail that cannot be flushed takes no record", err)
		}
		failure.Store(nil)
		wait(2 * flushInterval)
		if s := w.Stats(); s.Failing || s.Lost != 1 || s.Failures != 2 {
			t.Fatalf("%+v", s)
		}
		record(t, w, 3, 3)
		closeIt(t, w)
		r := verify(t, w.path)
		wantOK(t, r)
		if r.Recoveries != 1 || r.Lost != 1 {
			t.Error(show(r))
		}
	})
}

func TestBeside(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	defer closeIt(t, w)
	beside, err := OpenBeside(path, "etcd-get", false)
	if err != nil {
		t.Fatal(err)
	}
	record(t, beside, 1, 1)
	closeIt(t, beside)
	wantOK(t, verify(t, strings.TrimSuffix(path, ".log")+"-etcd-get.log"))
}

func TestRecordAllocatesNothing(t *testing.T) {
	w := open(t, trail(t))
	r := sample(1)
	if n := testing.AllocsPerRun(200, func() { _ = w.Record(context.Background(), r) }); n >= 1 {
		t.Errorf("%v allocations per record", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	w := open(b, trail(b))
	r := sample(1)
	for b.Loop() {
		if err := w.Record(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRecordParallel(b *testing.B) {
	w := open(b, trail(b))
	b.RunParallel(func(pb *testing.PB) {
		r := sample(1)
		for pb.Next() {
			if err := w.Record(context.Background(), r); err != nil {
				b.Error(err)
			}
		}
	})
}
