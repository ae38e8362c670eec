// Package filelock locks files between processes with flock(2), whose locks end with the process that holds them:
// SIGKILL leaves none behind. What is locked, and how long to wait, is each caller's own.
//
// The file of a lock is never removed: two processes could then hold "the" lock on two files of one name. One that root
// makes belongs to the owner of its folder, so that a command run by root does not lock out the plugin's own user.
//
// It depends on ownedfile for the owner and on hint. Functions may be called from any number of goroutines, and two of them that lock one
// file exclude each other as two processes do; a Lock belongs to one goroutine at a time.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// ErrHeld: another process, or another Lock of this one, holds the lock.
var ErrHeld = errors.New("the lock is held")

// The pauses between two attempts to take a lock that is held. flock has no deadline.
const (
	firstPause = 5 * time.Millisecond
	longPause  = 50 * time.Millisecond
)

// maxReplaced is how often the file at a path may be replaced while it is being locked.
const maxReplaced = 5

// Lock is a lock that is held. Its methods may be called from any goroutine; Unlock once.
type Lock struct{ file *os.File }

// Try takes the exclusive lock of the file at path, which it makes with mode 0600 if it is missing. ErrHeld: another
// holds it. The file must be a regular one and no link. Errors name the file and mostly have a hint.
func Try(path string) (*Lock, error) { return take(path, TryFile) }

// Wait is Try that waits for the lock until ctx ends. The error then wraps ErrHeld and ctx's error.
func Wait(ctx context.Context, path string) (*Lock, error) {
	return take(path, func(file *os.File) error { return WaitFile(ctx, file) })
}

func take(path string, lock func(*os.File) error) (*Lock, error) {
	for range maxReplaced {
		file, made, err := ownedfile.OpenOrMake(path, os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("opening the lock file: %w", ownedfile.Explain(path, err))
		}
		if !made {
			err = adopt(file)
		}
		if err == nil {
			err = lock(file)
		}
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		if IsAt(file, path) {
			return &Lock{file}, nil
		}
		_ = Release(file) // somebody removed it: the lock is that of the file that is at the path now
	}
	return nil, fmt.Errorf("locking %s: the file is replaced again and again", path)
}

// Unlock gives the lock up. The file stays.
func (l *Lock) Unlock() error { return Release(l.file) }

// IsAt reports whether the file at path is still the one that is locked.
func (l *Lock) IsAt(path string) bool { return IsAt(l.file, path) }

// adopt looks at a file that was there. One that root left in the folder of another user is given to that user: an empty
// file with one name only, so that no other file of root's can be put in its place to be given away.
func adopt(file *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return fmt.Errorf("looking at %s: %w", file.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return hint.Wrap(fmt.Errorf("%s is not a regular file", file.Name()), "find out who made it, then move it away")
	}
	if st.Uid == 0 && st.Size == 0 && st.Nlink == 1 {
		return ownedfile.HandOver(file)
	}
	return nil
}

// TryFile takes the exclusive lock of a file that the caller has opened. ErrHeld: another holds it, or a shared one.
func TryFile(file *os.File) error { return flock(file, unix.LOCK_EX) }

// TryShared takes a shared lock. ErrHeld: another holds the exclusive one.
func TryShared(file *os.File) error { return flock(file, unix.LOCK_SH) }

// IsHeld reports whether another holds the exclusive lock of the file. It holds a shared one for an instant.
func IsHeld(file *os.File) bool {
	err := TryShared(file)
	if err == nil {
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN) // closing the file does it too
	}
	return errors.Is(err, ErrHeld)
}

// WaitFile is TryFile that waits until ctx ends. The error then wraps ErrHeld and ctx's error.
func WaitFile(ctx context.Context, file *os.File) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := TryFile(file)
		if !errors.Is(err, ErrHeld) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%w: %s", ErrHeld, file.Name())
		default:
			return fmt.Errorf("locking %s: %w", file.Name(), err)
		}
	}
}

// Release gives a file's lock up and closes it. Closing alone would do it only when no child process, forked and not yet
// at its exec, shares the open file for an instant.
func Release(file *os.File) error {
	return errors.Join(unix.Flock(int(file.Fd()), unix.LOCK_UN), file.Close())
}

// IsAt reports whether the open file is the one at path.
func IsAt(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, there)
}
