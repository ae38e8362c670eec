package socket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// answerWait bounds the attempt to connect to what lies at the path. A listener answers at once, from its backlog.
const answerWait = time.Second

// takeLock takes the lock that one plugin holds for its life. flock goes with the process: SIGKILL leaves none behind.
func takeLock(path string) (*filelock.Lock, error) {
	lock, err := filelock.Try(path)
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, hint.Wrap(fmt.Errorf("%w: another plugin holds %s", ErrInUse, path), "stop the other plugin, or give this one another socket.path")
	case err != nil:
		return nil, hint.Wrap(err, cmp.Or(hint.Of(err), "check that this user can write to the socket's folder"))
	}
	return lock, nil
}

// removeStale removes a socket that a killed plugin left at path, and refuses everything else that lies there. The
// caller holds the lock, and nobody else can write to the folder.
func removeStale(path string) error {
	found, st, err := lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return hint.Wrap(fmt.Errorf("%w: it is not a socket", ErrOccupied), "move it away, or give another socket.path")
	}
	if int(st.Uid) != os.Geteuid() {
		return hint.Wrap(fmt.Errorf("%w: a socket of uid %d", ErrOccupied, st.Uid), "check whether a plugin runs as that user; if not, remove the file")
	}
	if err := mustBeDead(path); err != nil {
		return err
	}
	// The same file as was looked at: another process that removes left-overs at this path (a script, an older plugin without
	// the lock) may have put a live one there meanwhile.
	if now, _, err := lstat(path); err != nil || now != found {
		return hint.Wrap(fmt.Errorf("%w: it changed while it was looked at", ErrInUse), "see what else uses the path, and try again")
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing a left-over socket: %w", err)
	}
	return nil
}

// NobodyListens reports whether the error of connecting to a socket's path says for certain that nobody is there: no file, or
// one that was left behind. With any other error somebody may be.
func NobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// IsAbsent reports whether it is certain that nobody listens at the path. It does not wait for long: a listener lets a client
// connect at once.
func IsAbsent(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return NobodyListens(err)
}

// mustBeDead succeeds only if the system says that nobody listens. Everything else, a full backlog or a refusal to
// look, may be a live plugin.
func mustBeDead(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return hint.Wrap(fmt.Errorf("%w: a process answers on it", ErrInUse), "stop the other plugin, or give this one another socket.path")
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case errors.Is(err, unix.EPROTOTYPE):
		return hint.Wrap(fmt.Errorf("%w: it is not a stream socket", ErrOccupied), "move it away, or give another socket.path")
	}
	return hint.Wrap(fmt.Errorf("%w: it is not known whether a process answers on it: %w", ErrInUse, err), "stop what uses the path, or remove the file")
}
