// Package app is what the commands of hsm-kms share below the command line: the Context that each use case gets, the
// tokens of the configuration, the folder and lock of their state, and which errors are findings. A use case imports it; it
// imports no use case. It depends on config, envelope, hsm, modulefile, pinfile and worker, on kmsplugin/audit and
// kmsplugin/health, on evidence/migrate for its errors, and on filelock, hint and ownedfile.
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
	Config *config.Config   // of the ring that it works on: config.Config.ForRing
	Read   *config.ReadRing // what the file says of that ring when it is only read; nil: it is written under
	File   *config.Config   // as the file has it
	*Process
	Warn func(error) // shows a warning to the user
}

// Load reads the configuration and checks what it names for one ring; the empty name is that of the ring that is written under.
// The other rings are not looked at: what is wrong with them must not be in the way.
func Load(path, ring string) (*Context, error) {
	file, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	a := &Context{File: file}
	if a.Config, a.Read, err = file.ForRing(ring); err != nil {
		return nil, err
	}
	return a, preflight(a.Config)
}

// ForRing is the context of another ring of the configuration, whose files are checked; the empty name is that of the ring that
// is written under.
func (a *Context) ForRing(name string) (*Context, error) {
	of := *a
	var err error
	if of.Config, of.Read, err = a.File.ForRing(name); err != nil {
		return nil, err
	}
	return &of, CheckFiles(of.Config)
}

// LockKeys lets one command at a time change the ring from this machine: two rotations at once would each find nothing
// that comes after their own key. A lock that another process holds is an error at once.
func LockKeys(stateDir string) (unlock func(), err error) {
	lock, err := filelock.Try(filepath.Join(stateDir, "keys.lock"))
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, Finding(hint.Wrap(errors.New("another hsm-kms command is changing the ring"), "wait until it has ended, then run: hsm-kms keys list"))
	case err != nil:
		return nil, hint.Wrap(fmt.Errorf("locking the ring: %w", err), cmp.Or(hint.Of(err), "let the user that runs hsm-kms write to "+stateDir))
	}
	return func() { _ = lock.Unlock() }, nil
}
