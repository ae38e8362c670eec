package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// lockKeys lets one command at a time change the ring from this machine: two rotations at once would each find nothing
// that comes after their own key. A lock that another process holds is an error at once.
func lockKeys(stateDir string) (unlock func(), err error) {
	path := filepath.Join(stateDir, "keys.lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("locking the ring: %w", err), "let the user that runs hsm-kms write to "+stateDir)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, finding(hint.Wrap(errors.New("another hsm-kms command is changing the ring"), "wait until it has ended, then look with: hsm-kms keys list"))
		}
		return nil, fmt.Errorf("locking the ring: %w", err)
	}
	return func() { _ = file.Close() }, nil
}
