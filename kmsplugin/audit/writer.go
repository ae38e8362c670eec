package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Options say where a trail is, and how much it matters.
type Options struct {
	Path     string // in a folder that exists and that not everybody may write to
	Required bool   // an operation that cannot be recorded is an error; else it is counted
	// PodVolume: the folder may be a volume of the plugin's pod, which everybody may write to.
	PodVolume bool
	MaxBytes  int64         // the file is rotated when it has that size; 0: never
	LockWait  time.Duration // how long to wait for another writer; 0: half a second
	Logger    *slog.Logger  // told of changes of state, once each; nil: nobody

	sync func(*os.File) error // for tests; nil: fsync
}

// errClosed: Record after Close.
var errClosed = errors.New("the audit trail is closed")

// flushInterval is how long a record may be in the kernel's memory only.
const flushInterval = time.Second

// Writer appends to one trail. All methods may be called from any number of goroutines.
//
// Locks: mu is the only one. It guards those fields of the flusher too that say so. It is held during write(2),
// so a disk that hangs keeps it; what must not wait for the disk takes it with a context, or reads stats and unseen, which
// are atomic. fsync(2) runs without it.
//
// Record costs two system calls (fstat, write) under one lock and allocates nothing: about three microseconds.
// A writer goroutine was not better: the answer has to wait for the write either way.
type Writer struct {
	opts Options
	path string

	unseen atomic.Uint64 // operations lost without the lock, not yet in pending

	mu       contextLock // guards the fields below
	file     *os.File
	fd       int   // of file: File.Fd costs two system calls each time
	size     int64 // of the file as we left it: another size means that somebody else changed it
	sequence uint64
	previous digest
	newline  bool       // the file's last byte is not a newline
	torn     *tornBytes // what stands after the last good record; nil: nothing
	fresh    bool       // the file has no good record yet
	pending  *event     // to be written before anything else; nil: nothing
	buf      []byte
	flushErr error     // of the last flush
	retry    time.Time // no rotation before
	closed   bool

	stats stats
	flush flusher
}

// Open opens or makes the trail at opts.Path, takes its lock, finds the end of the chain and goes on there:
// with audit.started after an orderly end, else with audit.recovered. When the path has no file, the chain of
// the newest file renamed from it goes on.
//
// Errors: ErrInUse, and what is wrong with the file or folder, with a hint. That the first record cannot be
// written (a full disk) is an error only when opts.Required.
func Open(opts Options) (*Writer, error) {
	path, err := filepath.Abs(opts.Path)
	if err != nil || opts.Path == "" {
		return nil, errors.Join(errors.New("opening the audit trail: no path is given"), err)
	}
	if err := checkFolder(filepath.Dir(path), opts.PodVolume); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.LockWait <= 0 {
		opts.LockWait = 500 * time.Millisecond
	}
	file, err := openFile(path, openOrNew, opts.LockWait)
	if err != nil {
		return nil, err
	}
	w := &Writer{opts: opts, path: path, mu: newLock(), previous: noRecord(), buf: make([]byte, 0, maxLine)}
	w.file, w.fd = file, int(file.Fd())
	if err := w.resume(); err != nil {
		return nil, errors.Join(err, filelock.Release(file))
	}
	w.stats.sequence.Store(w.sequence)
	w.flush.start(w)
	w.mu.Lock()
	err = w.settle(w.writePending())
	w.mu.Unlock()
	if err != nil && opts.Required {
		return nil, errors.Join(err, w.Close())
	}
	opts.Logger.Info("audit trail opened", "path", path, "sequence", w.sequence, "hash", string(w.previous[:]))
	return w, nil
}

// resume takes the state of the chain from the file, or from the file that was renamed from it.
// w.mu is held, or nobody else has w yet.
func (w *Writer) resume() error {
	t, err := tailOfFile(w.file)
	if err != nil {
		return err
	}
	info, err := w.file.Stat()
	if err != nil {
		return fmt.Errorf("looking at the audit trail: %w", err)
	}
	w.size, w.newline, w.torn, w.fresh = info.Size(), t.newline, t.torn, t.last == nil
	if t.last == nil {
		older, err := latestSibling(w.path)
		if err != nil {
			return err
		}
		t.last = older.last
		if older.torn != nil {
			// It stays behind in a file that nobody appends to any more, and no record will cover it.
			w.opts.Logger.Warn("the audit trail's older file ends in a torn record", "path", w.path)
		}
	}
	orderly := t.torn == nil
	if t.last != nil {
		w.sequence, w.previous = t.last.Sequence, t.last.hash
		orderly = orderly && t.last.Operation == opEnded
	}
	if orderly {
		w.pending = &event{operation: opStarted}
	} else {
		w.pending = &event{operation: opRecovered, cause: "the process before ended without an end record"}
	}
	return nil
}

// Record appends r. When it returns nil, the record is with the kernel, and it is on the disk a second
// later, or the operation is counted as lost because the trail is not required. An error (Required only)
// means that the operation must not be answered. It waits for other records until ctx ends, and for recordWait at
// least; its own write cannot be ended.
func (w *Writer) Record(ctx context.Context, r Record) error {
	if err := w.mu.lockWithin(ctx, recordWait); err != nil {
		w.stats.lost.Add(1)
		w.unseen.Add(1)
		if !w.opts.Required {
			return nil
		}
		return err
	}
	defer w.mu.Unlock()
	w.stats.writing.begin()
	err := w.settle(w.record(&r))
	w.stats.writing.end()
	if err == nil {
		return nil
	}
	w.stats.lost.Add(1)
	if w.pending != nil {
		w.pending.lost++
	}
	if !w.opts.Required {
		return nil
	}
	return err
}

// record needs the lock: w.mu is held.
func (w *Writer) record(r *Record) error {
	switch {
	case w.closed:
		return errClosed
	case strings.HasPrefix(r.Operation, ownPrefix):
		return fmt.Errorf("recording the operation %q: names with %s are the trail's own", r.Operation, ownPrefix)
	case w.flushErr != nil && w.opts.Required:
		return w.flushErr
	}
	w.noteUnseen()
	if err := w.look(); err != nil {
		return err
	}
	if w.opts.MaxBytes > 0 && w.size >= w.opts.MaxBytes && !w.fresh {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	if err := w.writePending(); err != nil {
		return err
	}
	start := w.begin()
	w.buf = appendRecord(w.buf, w.sequence+1, r)
	return w.write(start)
}

// settle notes the outcome of an attempt to write, and logs it when it is news. w.mu is held.
func (w *Writer) settle(err error) error {
	switch {
	case err != nil:
		w.fail(err)
	case w.stats.failing.Load() && w.flushErr == nil:
		w.stats.failing.Store(false)
		w.opts.Logger.Info("audit trail is written again", "path", w.path)
	}
	return err
}

// fail counts a failure and sees to it that the trail will tell of it. w.mu is held.
func (w *Writer) fail(err error) {
	w.stats.failures.Add(1)
	if w.closed {
		return
	}
	w.pendingRecovery("it could not be written: " + err.Error())
	w.flush.wanted() // which tries again in a second, so that the gap ends without a request too
	if w.stats.failing.Swap(true) {
		return
	}
	consequence := "operations go on without a record (audit.required is false)"
	if w.opts.Required {
		consequence = "operations are refused (audit.required is true)"
	}
	w.opts.Logger.Error("audit trail cannot be written", "path", w.path, "error", err, "consequence", consequence,
		"hint", cmp.Or(hint.Of(err), "make room on its file system, or find out why it cannot be written"))
}

// pendingRecovery makes sure that the next record is audit.recovered. The first cause is kept. w.mu is held.
func (w *Writer) pendingRecovery(cause string) {
	if w.pending == nil || w.pending.operation != opRecovered {
		w.pending = &event{operation: opRecovered, cause: cause}
	}
}

// noteUnseen has the trail tell of operations that got no record because they could not have the lock. w.mu is held.
func (w *Writer) noteUnseen() {
	if n := w.unseen.Swap(0); n > 0 {
		w.pendingRecovery(errBusy.Error())
		w.pending.lost += n
	}
}

// Close writes the end record, flushes and gives the lock up. What it could not write or flush is its error.
// A second Close does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.noteUnseen()
	err := w.look()
	if err == nil {
		err = w.writePending()
	}
	if err == nil {
		err = w.writeEvent(&event{operation: opEnded})
	}
	w.closed = true
	w.mu.Unlock()
	err = errors.Join(err, w.flush.stop())
	w.opts.Logger.Info("audit trail closed", "path", w.path, "sequence", w.sequence, "hash", string(w.previous[:]))
	return errors.Join(err, filelock.Release(w.file))
}
