package worker

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketPair makes a pair of connected stream sockets: near on Go's network poller for this program, far for the worker.
// Both are closed on exec.
func socketPair() (near *net.UnixConn, far *os.File, err error) {
	fds, err := streamPair()
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	far = os.NewFile(uintptr(fds[1]), "worker's end")
	near, err = socketOf(fds[0])
	if err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return near, far, nil
}

// socketOf takes over a descriptor that must be a stream socket of the Unix family.
func socketOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // FileConn works on a duplicate
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("using a socket: %w", err)
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("using a socket: it is not of the Unix family"), conn.Close())
	}
	return socket, nil
}

// The critical lock is a record lock (fcntl): it belongs to a process, ends with it, and both processes may take it
// through one inherited descriptor.

// tryLock takes the lock if no other process has it.
func tryLock(f *os.File) bool {
	return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}) == nil
}

// lock waits for it.
func lock(f *os.File) error {
	for {
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func unlock(f *os.File) error {
	return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
}
