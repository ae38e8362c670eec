package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
)

// flusher brings what was written to the disk, a second after it was written at the latest, and off the path
// of requests. It sleeps while nothing is written.
type flusher struct {
	w      *Writer
	want   chan struct{} // holds one: something was written since the last flush
	quit   chan struct{}
	done   chan error
	sync   func(*os.File) error
	old    []*os.File // to be flushed and closed; under w.mu
	folder bool       // an entry of the folder changed; under w.mu
}

func (f *flusher) start(w *Writer) {
	f.w, f.want, f.quit, f.done = w, make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	f.sync = w.opts.sync
	if f.sync == nil {
		f.sync = (*os.File).Sync
	}
	f.folder = true // the file may be new
	go f.run()
}

// wanted tells the flusher that something was written. It never blocks.
func (f *flusher) wanted() {
	select {
	case f.want <- struct{}{}:
	default:
	}
}

// retire hands over a file that nothing is written to any more. Call with w.mu held.
func (f *flusher) retire(file *os.File) {
	f.old = append(f.old, file)
	f.folder = true
	f.wanted()
}

func (f *flusher) run() {
	for {
		select {
		case <-f.want:
		case <-f.quit:
			f.done <- f.flush()
			return
		}
		select {
		case <-time.After(flushInterval):
		case <-f.quit:
			f.done <- f.flush()
			return
		}
		if f.flush() != nil {
			f.wanted() // again in a second
		}
	}
}

// stop flushes once more and returns that flush's error.
func (f *flusher) stop() error {
	close(f.quit)
	return <-f.done
}

// flush writes the files and, when one was made or renamed, the folder to the disk. Records are appended
// meanwhile: fsync runs without the lock.
func (f *flusher) flush() error {
	w := f.w
	w.mu.Lock()
	file, old, folder := w.file, f.old, f.folder
	f.old, f.folder = nil, false
	w.mu.Unlock()

	w.stats.flushing.begin()
	defer w.stats.flushing.end()
	err := f.sync(file)
	for _, o := range old {
		err = errors.Join(err, f.sync(o), filelock.Release(o))
	}
	if folder {
		err = errors.Join(err, syncFolder(filepath.Dir(w.path)))
	}
	if err != nil {
		err = fmt.Errorf("flushing the audit trail: %w", err)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	w.flushErr = err
	switch {
	case err != nil:
		f.folder = f.folder || folder
		w.fail(err)
	case w.stats.failing.Load() && !w.closed:
		_ = w.settle(w.again()) // counted, logged and tried again by settle
	}
	return err
}

// again tries what failed before. It looks first, as a record does: what is written to a file that was removed is gone.
// w.mu is held.
func (w *Writer) again() error {
	if err := w.look(); err != nil {
		return err
	}
	return w.writePending()
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
