// Package atomicfile replaces files in one step: a reader finds the old content or the new one, after a crash or a loss
// of power too. It also reads back the small files of stateDir.
//
// The new content is written to a file beside the old one, flushed to the disk, and renamed; then the folder is flushed.
// An error before the rename leaves the old file as it was. A process that is killed leaves at most its file beside,
// which the next write removes.
//
// It depends on filelock and ownedfile. Functions keep nothing and may be called from any number of goroutines and processes;
// of two that write one file, the last wins.
package atomicfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// WriteState replaces or makes a file of stateDir: mode 0600, and if root writes, with the owner of its folder, so that
// the plugin under its own user can read and replace it. A link at path is replaced, not followed. Safe for concurrent
// use, also between processes: the last one wins. Errors name the file and mostly have a hint.
func WriteState(path string, data []byte) error {
	return write(path, data, ownedfile.HandOver, os.Rename)
}

// ReadState reads a file of stateDir of at most limit bytes. It follows no link. found reports whether there is a file, also with an
// error. Errors name the file and mostly have a hint.
func ReadState(path string, limit int) (text []byte, found bool, err error) {
	// O_NONBLOCK: opening a FIFO must not hang the plugin.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, true, ownedfile.Explain(path, err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular(): // a FIFO that somebody else has open would be waited for
		err = errors.New("it is not a regular file")
	default:
		text, err = io.ReadAll(io.LimitReader(file, int64(limit)+1))
	}
	if err == nil && len(text) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	if err != nil {
		return nil, true, fmt.Errorf("%s: %w", path, err)
	}
	return text, true, nil
}

// DecodeState decodes the one JSON value of such a file. A field that to does not have, and anything after the value, are errors.
func DecodeState(text []byte, to any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(to); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// Create makes a file that a person has named and that does not exist: mode 0600, of the user that runs this. Where it does
// exist the error wraps fs.ErrExist. Otherwise it is as WriteState.
func Create(path string, data []byte) error {
	return write(path, data, func(*os.File) error { return nil }, func(from, to string) error {
		if err := os.Link(from, to); err != nil { // unlike a rename it replaces nothing
			return err
		}
		return os.Remove(from)
	})
}

// Replace replaces or makes a file that a person has named: what is replaced keeps its owner, group and mode, and a link
// to it stays a link. A new file has mode perm, whatever the umask, and if root makes it, the owner of its folder.
// Otherwise it is as WriteState.
func Replace(path string, data []byte, perm fs.FileMode) error {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return write(path, data, func(file *os.File) error { return errors.Join(file.Chmod(perm), ownedfile.HandOver(file)) }, os.Rename)
	}
	if err != nil {
		return failure(path, err)
	}
	old, _, err := ownedfile.Lstat(real)
	if err == nil && !old.Regular {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return failure(path, err)
	}
	return write(real, data, func(file *os.File) error { return keep(file, old) }, os.Rename)
}

// keep gives the file the owner and mode of the one that it replaces. A process that is not root may be unable to keep
// the owner, and is the owner then; a group that cannot be kept gets no rights.
func keep(file *os.File, old ownedfile.Info) error {
	perm := old.Perm
	if err := file.Chown(int(old.UID), int(old.GID)); err != nil {
		if os.Geteuid() == 0 {
			return err
		}
		if file.Chown(-1, int(old.GID)) != nil {
			perm &^= 0o070
		}
	}
	return unix.Fchmod(int(file.Fd()), uint32(perm)) // all twelve bits, which File.Chmod has elsewhere
}

// write writes the file beside, has own give it an owner and a mode, and place put it at path.
func write(path string, data []byte, own func(*os.File) error, place func(from, to string) error) error {
	removeLeftOvers(path)
	file, err := create(path)
	if err != nil {
		return failure(path, err)
	}
	_, err = file.Write(data)
	if err == nil {
		err = own(file)
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = place(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	if err := errors.Join(err, filelock.Release(file)); err != nil {
		return failure(path, err)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return failure(path, err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return failure(path, err)
	}
	return nil
}

func failure(path string, err error) error {
	return fmt.Errorf("writing %s: %w", path, ownedfile.Explain(path, err))
}

// create makes the file beside, for its owner alone, and locks it: what is locked is no left-over.
func create(path string) (*os.File, error) {
	for {
		file, err := os.CreateTemp(filepath.Dir(path), beside(path)+"*")
		if err != nil {
			return nil, err
		}
		switch err := filelock.TryFile(file); {
		case err == nil && filelock.IsAt(file, file.Name()):
			return file, nil
		case err != nil && !errors.Is(err, filelock.ErrHeld):
			return nil, errors.Join(err, file.Close(), os.Remove(file.Name()))
		}
		_ = file.Close() // another process took it for a left-over in the instant before the lock, and removes it
	}
}

// beside is how the names of the files beside path begin.
func beside(path string) string { return "." + filepath.Base(path) + ".new-" }

// removeLeftOvers removes what processes that were killed left beside path. What it cannot remove does no harm.
func removeLeftOvers(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), beside(path)) || !entry.Type().IsRegular() {
			continue
		}
		name := filepath.Join(filepath.Dir(path), entry.Name())
		file, err := os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if filelock.TryFile(file) == nil {
			_ = os.Remove(name)
		}
		_ = filelock.Release(file)
	}
}
