//go:build !linux

package worker

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Elsewhere the program runs for development only.

func programPath() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

func streamPair() ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

func lockFile() (*os.File, error) {
	f, err := os.CreateTemp("", "hsm-kms-*")
	if err != nil {
		return nil, fmt.Errorf("making the critical lock: %w", err)
	}
	return f, os.Remove(f.Name())
}

// awaitExit cannot wait without reaping: what the library forked is left.
func awaitExit(int) bool { return false }

func resident(int) uint64 { return 0 }

func inherited() ([]int, error) { return nil, nil }

func adoptOrphans() error { return nil }
