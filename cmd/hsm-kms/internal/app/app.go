// Package app is what the commands of hsm-kms share below the command line: the Context that each use case gets, the
// tokens of the configuration, the folder and lock of their state, and which errors are findings. It depends on package
// config, on hsm and its helpers, and on envelope. A use case imports it; it imports no use case.
//
// A Context is read only. A Process and the tokens that were connected are safe for concurrent use.
package app

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Context is what a use case works with.
type Context struct {
	Config *config.Config
	*Process
	Warn func(error) // shows a warning to the user
}

// Load reads the configuration and checks what it names.
func Load(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	return cfg, preflight(cfg)
}

// LockKeys lets one command at a time change the ring from this machine: two rotations at once would each find nothing
// that comes after their own key. A lock that another process holds is an error at once.
func LockKeys(stateDir string) (unlock func(), err error) {
	lock, err := filelock.Try(filepath.Join(stateDir, "keys.lock"))
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, Finding(hint.Wrap(errors.New("another hsm-kms command is changing the ring"), "wait until it has ended, then look with: hsm-kms keys list"))
	case err != nil:
		return nil, hint.Wrap(fmt.Errorf("locking the ring: %w", err), cmp.Or(hint.Of(err), "let the user that runs hsm-kms write to "+stateDir))
	}
	return func() { _ = lock.Unlock() }, nil
}
