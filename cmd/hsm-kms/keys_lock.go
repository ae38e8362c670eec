package main

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// lockKeys lets one command at a time change the ring from this machine: two rotations at once would each find nothing
// that comes after their own key. A lock that another process holds is an error at once.
func lockKeys(stateDir string) (unlock func(), err error) {
	lock, err := filelock.Try(filepath.Join(stateDir, "keys.lock"))
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, finding(hint.Wrap(errors.New("another hsm-kms command is changing the ring"), "wait until it has ended, then look with: hsm-kms keys list"))
	case err != nil:
		return nil, hint.Wrap(fmt.Errorf("locking the ring: %w", err), cmp.Or(hint.Of(err), "let the user that runs hsm-kms write to "+stateDir))
	}
	return func() { _ = lock.Unlock() }, nil
}
