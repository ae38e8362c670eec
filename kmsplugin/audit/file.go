package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// ErrInUse: another process writes this trail.
var ErrInUse = errors.New("another process writes this audit trail")

// writeFlags open a file to append to. Reading is for the file's end.
const writeFlags = os.O_RDWR | os.O_APPEND

const readFlags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// opener opens a trail's file to append to.
type opener func(path string) (*os.File, error)

// openOrNew opens the file at path, or makes it.
func openOrNew(path string) (*os.File, error) {
	file, _, err := ownedfile.OpenOrMake(path, writeFlags, 0o600)
	return file, err
}

// openNew makes the file at path, which must not be there.
func openNew(path string) (*os.File, error) { return ownedfile.Make(path, writeFlags, 0o600) }

// checkFolder refuses a folder in which anybody may rename the trail away and put another in its place.
func checkFolder(path string, podVolume bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return hint.Wrap(fmt.Errorf("opening the audit trail's folder: %w", err), "make the folder "+path+" for the plugin's user, mode 0750")
	}
	if !info.IsDir() {
		return fmt.Errorf("opening the audit trail's folder: %s is not a folder", path)
	}
	if info.Mode().Perm()&0o002 != 0 && !(podVolume && ownedfile.IsVolume(path)) {
		return hint.Wrap(fmt.Errorf("opening the audit trail's folder: anybody may write to %s", path), "chmod o-w "+path+", or set audit.path to a folder of its own")
	}
	return nil
}

// openFile opens path to append to, makes it with mode 0600 when it is not there, checks it and locks it.
// wait bounds how long another's lock is waited for; then the error is ErrInUse.
func openFile(path string, open opener, wait time.Duration) (*os.File, error) {
	const attempts = 5
	for range attempts {
		file, err := open(path)
		if err != nil {
			return nil, openError(path, err)
		}
		err = checkFile(file)
		if err == nil {
			err = lock(file, wait)
		}
		if err != nil {
			return nil, errors.Join(err, file.Close()) // not locked
		}
		if filelock.IsAt(file, path) {
			return file, nil
		}
		// Renamed by the process that had the lock until now: what is at the path is another file.
		if err := filelock.Release(file); err != nil {
			return nil, fmt.Errorf("closing the audit trail: %w", err)
		}
	}
	return nil, fmt.Errorf("opening the audit trail %s: the file is replaced again and again", path)
}

func openError(path string, err error) error {
	if errors.Is(err, syscall.ELOOP) {
		err = hint.Wrap(fmt.Errorf("%s is a symbolic link", path), "name the file itself in audit.path")
	}
	return fmt.Errorf("opening the audit trail: %w", ownedfile.Explain(path, err))
}

// checkFile looks at what was opened, not at the path again, which may have changed since.
func checkFile(file *os.File) error {
	info, err := ownedfile.Stat(file)
	if err != nil {
		return err
	}
	owner, err := ownedfile.FolderOwner(filepath.Dir(file.Name()))
	if err != nil {
		return fmt.Errorf("looking at the audit trail's folder: %w", err)
	}
	switch {
	case !info.Regular:
		return hint.Wrap(fmt.Errorf("opening the audit trail: %s is not a regular file", file.Name()), "move it away, or give another audit.path")
	case info.OthersMayWrite():
		return hint.Wrap(fmt.Errorf("opening the audit trail: others may write to %s (mode %04o)", file.Name(), info.Perm), "chmod 0600 "+file.Name())
	case !info.OwnerTrusted() && info.UID != owner: // the folder's owner could put another file there anyway
		return hint.Wrap(fmt.Errorf("opening the audit trail: %s belongs to uid %d", file.Name(), info.UID), fmt.Sprintf("chown %d %s", os.Geteuid(), file.Name()))
	}
	return nil
}

// lock takes the writer's lock. A check of the file holds a shared one for an instant, and a restart may
// overlap with the end of the process before, so a short wait is no error.
func lock(file *os.File, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	err := filelock.WaitFile(ctx, file)
	if errors.Is(err, filelock.ErrHeld) {
		return hint.Wrap(fmt.Errorf("%w: %s", ErrInUse, file.Name()), "stop that process, or give this one another audit.path")
	}
	return err
}

// latestSibling finds where the chain of a file that is gone or empty goes on from: the last record of the
// newest file that was renamed from it (path.N or path-N). A nil tail.last: there is none. The error wraps
// ErrInUse when a process still writes one: two writers would fork the chain.
func latestSibling(path string) (tail, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return tail{}, fmt.Errorf("looking for the audit trail's older files: %w", err)
	}
	var latest tail
	for _, entry := range entries {
		if !isSibling(entry.Name(), filepath.Base(path)) || !entry.Type().IsRegular() {
			continue
		}
		t, err := siblingTail(filepath.Join(filepath.Dir(path), entry.Name()))
		if err != nil {
			return tail{}, err
		}
		if t.last != nil && (latest.last == nil || t.last.Sequence > latest.last.Sequence) {
			latest = t
		}
	}
	return latest, nil
}

func isSibling(name, base string) bool {
	rest, found := strings.CutPrefix(name, base)
	return found && len(rest) > 1 && (rest[0] == '.' || rest[0] == '-') && strings.Trim(rest[1:], "0123456789") == ""
}

func siblingTail(path string) (tail, error) {
	file, err := os.OpenFile(path, readFlags, 0)
	if err != nil {
		return tail{}, fmt.Errorf("reading the audit trail's older file: %w", err)
	}
	defer file.Close() // read only: nothing to lose
	if filelock.IsHeld(file) {
		return tail{}, hint.Wrap(fmt.Errorf("%w: it was renamed to %s", ErrInUse, path), "stop that process, or send it SIGHUP first")
	}
	t, err := tailOfFile(file)
	if errors.Is(err, errNotATrail) {
		return tail{}, nil // not ours, or of no use: the check of the files will say so
	}
	return t, err
}
