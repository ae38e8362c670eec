// Package modulefile looks at a PKCS#11 module's file before it is loaded. Anyone who can write that file, or swap it by
// way of a folder or a link on the path to it, runs code in the token's worker process and has the PIN; and a module for another
// processor fails in the dynamic linker with a message that helps nobody. hsm/p11 loads it.
//
// It depends on ownedfile for who may write where, and on hint. Functions keep nothing and are safe for concurrent use.
package modulefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// The ways in which a module file fails. All of them need a person.
var (
	// ErrAbsent: nothing is there, or a link leads nowhere.
	ErrAbsent = errors.New("module file is absent")
	// ErrUnreadable: this process may not read the file or enter a folder on the way.
	ErrUnreadable = errors.New("module file cannot be read")
	// ErrNotModule: not a regular file, not a shared library, or one for another system or processor.
	ErrNotModule = errors.New("not a module for this machine")
	// ErrUnsafe: somebody other than root and our own user can change what would be loaded.
	ErrUnsafe = errors.New("module file is unsafe")
)

// Identity names the file behind a module path. Two paths with one Identity are one module: the dynamic linker gives
// the same instance for both. Comparable.
type Identity struct {
	Device, Inode uint64
}

// Check reports whether the module at the absolute path may be loaded, and which file it is. Links are followed. The
// file must be a shared library for this processor. Unless allowUnsafe (allowUnsafeModulePath of the configuration),
// every folder and link on the way and the file itself must belong to root or to our own user and be writable by
// nobody else (group root counts as root); a folder higher up that others can write is fine when it has the sticky
// bit, as /tmp has, the module's own folder is not. All findings of that kind are reported together.
//
// Errors wrap one of the sentinels above and carry a hint. The file is read but not locked: what makes the answer
// last until the module is loaded is that nobody untrusted can write on the way.
func Check(path string, allowUnsafe bool) (Identity, error) {
	if !filepath.IsAbs(path) {
		return Identity{}, failure(path, ErrAbsent, "the path is not absolute", "write the whole path in module")
	}
	openings, real, err := ownedfile.Others(path)
	if err != nil {
		return Identity{}, openFailure(path, err)
	}
	file, info, err := ownedfile.Open(real)
	if err != nil {
		return Identity{}, openFailure(path, err)
	}
	defer file.Close()
	if !info.Regular {
		return Identity{}, failure(path, ErrNotModule, "it is not a regular file", "point module at the vendor's shared library")
	}
	if !allowUnsafe && len(openings) > 0 {
		return Identity{}, unsafeFailure(path, openings)
	}
	if err := checkFormat(file); err != nil {
		return Identity{}, failure(path, ErrNotModule, err.Error(),
			"install the vendor's library for this system and point module at it")
	}
	return Identity{Device: info.Device, Inode: info.Inode}, nil
}

// unsafeFailure reports every way in which somebody else could change what is loaded.
func unsafeFailure(path string, openings []ownedfile.Opening) error {
	var found []error
	for _, o := range openings {
		advice := o.Fix
		if o.Above {
			advice += ", or move the module to /usr/lib"
		}
		found = append(found, failure(path, ErrUnsafe, o.What, advice))
	}
	return errors.Join(found...)
}

func openFailure(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return failure(path, ErrAbsent, err.Error(), "install the vendor's PKCS#11 library, or correct module in the configuration")
	}
	return failure(path, ErrUnreadable, err.Error(), fmt.Sprintf("let uid %d read it: namei -l %s", os.Geteuid(), path))
}

func failure(path string, kind error, what, advice string) error {
	return hint.Wrap(fmt.Errorf("checking module %s: %w: %s", path, kind, what), advice)
}
