package socket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// lookInterval is how often Keep looks at the path: one lstat(2), and far within the minute after which kube-apiserver
// asks again.
const lookInterval = 2 * time.Second

// state is what metrics and health checks ask.
type state struct {
	lost     atomic.Bool
	renewals atomic.Uint64
}

// Listening reports whether who connects to the path comes to us, as of the last look.
func (l *Listener) Listening() bool { return !l.state.lost.Load() }

// Renewals is how often the socket was made again.
func (l *Listener) Renewals() uint64 { return l.state.renewals.Load() }

// Keep looks every two seconds, until ctx ends, whether the file at the path is still the one that was made, and makes the
// socket again if not. What somebody else has put there meanwhile is as safe as at the start: a live socket, or what is no
// left-over of ours, stays, and is said. Connections that there are do not notice. Call it once.
func (l *Listener) Keep(ctx context.Context, logger *slog.Logger) { l.keep(ctx, lookInterval, logger) }

func (l *Listener) keep(ctx context.Context, every time.Duration, logger *slog.Logger) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	logged := "" // the last error
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if l.isOurs() {
			if logged != "" { // somebody put it back
				logged = ""
				l.state.lost.Store(false)
				logger.Info("the socket is at its path again", "socket", l.cfg.Path)
			}
			continue
		}
		err := l.renew()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err == nil:
			logged = ""
			l.state.lost.Store(false)
			logger.Warn("the socket was removed or replaced by another process, and is made again", "socket", l.cfg.Path,
				"hint", "find out what removes it: a clean-up of its folder, or another plugin at the same path")
		case err.Error() != logged:
			logged = err.Error()
			l.state.lost.Store(true)
			logger.Error("the socket was removed or replaced by another process, and cannot be made again: nobody can connect", "socket", l.cfg.Path,
				"error", err, "hint", cmp.Or(hint.Of(err), "see what is at the path, and that this user can write to its folder"))
		}
	}
}

// isOurs reports whether the file at the path is the one that was made.
func (l *Listener) isOurs() bool {
	now, _, err := lstat(l.cfg.Path)
	l.mu.Lock()
	defer l.mu.Unlock()
	return err == nil && now == l.bound.made
}

// renew makes the socket again. os.ErrClosed: Close was called.
func (l *Listener) renew() error {
	if err := prepareFolder(filepath.Dir(l.cfg.Path), l.cfg.PodVolume); err != nil {
		return err
	}
	lock, err := l.takeNewLock()
	if err != nil {
		return err
	}
	b, err := bind(l.cfg)
	if err == nil && !l.adopt(b, lock) {
		err = errors.Join(os.ErrClosed, b.listener.Close(), b.remove(l.cfg.Path))
	}
	if err != nil && lock != nil {
		err = errors.Join(err, lock.Unlock())
	}
	if err != nil {
		return fmt.Errorf("making the socket again: %w", err)
	}
	return nil
}

// takeNewLock takes the lock beside the path, unless it is the one that is held: with the folder, the lock file is gone too,
// and another plugin may have made one of its own. nil: it is held.
func (l *Listener) takeNewLock() (*filelock.Lock, error) {
	path := l.cfg.Path + ".lock"
	l.mu.Lock()
	held := l.lock
	l.mu.Unlock()
	if held.IsAt(path) {
		return nil, nil
	}
	return takeLock(path)
}

// adopt goes on with b; lock, if not nil, in place of the lock so far. false: Close was called.
func (l *Listener) adopt(b bound, lock *filelock.Lock) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	old := l.bound.listener
	l.bound = b
	if lock != nil {
		_ = l.lock.Unlock() // of a file that is gone
		l.lock = lock
	}
	l.state.renewals.Add(1)
	_ = old.Close() // a goroutine that waits in Accept goes on with b
	return true
}
