package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// rotateRetry is how long a rotation that failed is left alone: it is on the path of a request.
const rotateRetry = time.Minute

// checkWait is how long a new file's lock is waited for: a check of the trail holds it for an instant.
const checkWait = 50 * time.Millisecond

// The two ways in which a trail is rotated, as the last record of the file has it.
const (
	rotatedBySize   = "size"   // the trail renamed the file itself, at Options.MaxBytes
	rotatedByHangup = "SIGHUP" // somebody renamed it, and Reopen was called
)

// rotate goes on in a new file; the full one becomes path.N, N the sequence of its last record in twelve
// digits, so that a shell's glob lists the files in order. That no file can be renamed or made is counted and
// logged and not an error: the chain goes on in the file that there is. The error is that of a write. w.mu is held.
func (w *Writer) rotate() error {
	if time.Now().Before(w.retry) {
		return nil
	}
	if err := w.writePending(); err != nil {
		return err
	}
	if err := w.writeEvent(&event{operation: opRotated, cause: rotatedBySize}); err != nil {
		return err
	}
	file, err := w.nextFile(fmt.Sprintf("%s.%012d", w.path, w.sequence))
	if err != nil {
		w.retry = time.Now().Add(rotateRetry)
		w.stats.failures.Add(1)
		w.opts.Logger.Error("audit trail cannot be rotated and goes on growing", "path", w.path, "error", err,
			"hint", "let the plugin's user rename and make files in its folder")
		return nil
	}
	w.opts.Logger.Info("audit trail rotated", "path", w.path, "sequence", w.sequence, "hash", string(w.previous[:]))
	w.adopt(file, &event{operation: opContinued})
	return nil
}

// nextFile renames the file to older and makes a new one in its place, or leaves all as it was. w.mu is held.
func (w *Writer) nextFile(older string) (*os.File, error) {
	if _, err := os.Lstat(older); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("renaming the audit trail: %s exists", older), err)
	}
	if !filelock.IsAt(w.file, w.path) {
		return nil, hint.Wrap(fmt.Errorf("renaming the audit trail: %s is another file by now", w.path), "send SIGHUP after renaming the file")
	}
	if err := os.Rename(w.path, older); err != nil {
		return nil, fmt.Errorf("renaming the audit trail: %w", err)
	}
	file, err := openFile(w.path, openNew, checkWait)
	if err == nil {
		return file, nil
	}
	if _, statErr := os.Lstat(w.path); errors.Is(statErr, fs.ErrNotExist) {
		err = errors.Join(err, os.Rename(older, w.path))
	}
	return nil, err
}

// adopt goes on in file, which is empty, with first as its first record. The old file is flushed and closed
// by the flusher, off the path of the request. w.mu is held.
func (w *Writer) adopt(file *os.File, first *event) {
	w.flush.retire(w.file)
	w.file, w.fd = file, int(file.Fd())
	w.size, w.fresh, w.newline, w.torn = 0, true, false, nil
	w.retry = time.Time{}
	if w.pending == nil || first.operation == opRecovered {
		if w.pending != nil {
			first.lost += w.pending.lost // nowhere else would it be told
		}
		w.pending = first
	}
}

// Reopen goes on in the file at the path when that is another than the one being written: call it on SIGHUP,
// after logrotate or a person renamed the file. The chain goes on. On an error the old file is kept.
func (w *Writer) Reopen() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errClosed
	}
	ended := w.look()
	if filelock.IsAt(w.file, w.path) {
		return w.settle(errors.Join(ended, w.writePending())) // not renamed, or removed and replaced just now
	}
	file, err := w.openEmpty()
	if err != nil {
		w.stats.failures.Add(1)
		return fmt.Errorf("reopening: %w", err)
	}
	// An old file that cannot take its last record is no reason to stay with it: the new one tells.
	if ended == nil {
		ended = w.writePending()
	}
	if ended == nil {
		ended = w.writeEvent(&event{operation: opRotated, cause: rotatedByHangup})
	}
	first := &event{operation: opContinued}
	if ended != nil {
		first = &event{operation: opRecovered, cause: "the file before could not be ended: " + ended.Error()}
	}
	w.opts.Logger.Info("audit trail reopened", "path", w.path, "sequence", w.sequence, "hash", string(w.previous[:]))
	w.adopt(file, first)
	return w.settle(w.writePending())
}

// replace makes a new file at the path because the one being written was removed. w.mu is held.
func (w *Writer) replace(cause string) error {
	file, err := w.openEmpty()
	if err != nil {
		return fmt.Errorf("%s: %w", cause, err)
	}
	w.opts.Logger.Error("audit trail was removed and is begun again", "path", w.path, "lastSequence", w.sequence)
	w.adopt(file, &event{operation: opRecovered, cause: cause})
	return nil
}

// openEmpty opens the file at the path, which must be new or empty.
func (w *Writer) openEmpty() (*os.File, error) {
	file, err := openFile(w.path, openOrNew, checkWait)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Size() > 0 {
		err = hint.Wrap(fmt.Errorf("%s is another file that holds something", w.path), "move it away and keep it: it may be the trail, rewritten by an editor; after a rename of your own send SIGHUP again")
	}
	if err != nil {
		return nil, errors.Join(err, filelock.Release(file))
	}
	return file, nil
}
