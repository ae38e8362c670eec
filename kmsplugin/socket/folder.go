package socket

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// prepareFolder makes the folder if it is missing, and sees that nobody but root and we can replace what is in it.
func prepareFolder(folder string) error {
	err := os.Mkdir(folder, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(folder, 0o755)
	}
	switch {
	case err == nil:
		// The umask may have taken rights away that a group's members need to get to the socket.
		if err := os.Chmod(folder, 0o755); err != nil {
			return fmt.Errorf("setting the folder's mode: %w", err)
		}
	case !errors.Is(err, fs.ErrExist):
		return hint.Wrap(fmt.Errorf("making the folder: %w", err), "make "+folder+", owned by this user with mode 0755")
	}
	return CheckFolder(folder)
}

// CheckFolder tells, without changing anything, whether nobody but root and our own user can replace what is in the
// folder: its own mode, and that of every folder and link on the way. Errors wrap ErrFolder and mostly have a hint.
func CheckFolder(folder string) error {
	real, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFolder, err)
	}
	if err := checkFolder(real); err != nil {
		return err
	}
	// The way there: as it is written, for the links in it, and as it really is.
	for _, way := range []string{folder, real} {
		for at := filepath.Dir(way); ; at = filepath.Dir(at) {
			if err := checkAncestor(at); err != nil {
				return err
			}
			if at == filepath.Dir(at) {
				break
			}
		}
	}
	if _, link, err := ownedfile.Lstat(folder); err == nil && link {
		return checkAncestor(folder)
	}
	return nil
}

// checkFolder is for the folder itself: the sticky bit does not excuse it, because whoever can write to it could put
// something in the socket's way.
func checkFolder(folder string) error {
	info, _, err := ownedfile.Lstat(folder)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrFolder, err)
	case !info.OwnerTrusted():
		return hint.Wrap(fmt.Errorf("%w: %s belongs to uid %d", ErrFolder, folder, info.UID), "chown it to root or to the user that the plugin runs as")
	case info.OthersMayWrite():
		return hint.Wrap(fmt.Errorf("%w: others may write to %s (mode %#o)", ErrFolder, folder, info.Perm), "chmod 0755 "+folder)
	}
	return nil
}

// checkAncestor is for a folder or link above: nobody else may rename or replace it.
func checkAncestor(path string) error {
	info, link, err := ownedfile.Lstat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrFolder, err)
	case !info.OwnerTrusted():
		return hint.Wrap(fmt.Errorf("%w: %s, above it, belongs to uid %d", ErrFolder, path, info.UID), "use a folder below /run")
	case !link && info.OthersMayWrite() && !info.Sticky():
		return hint.Wrap(fmt.Errorf("%w: others may write to %s, above it (mode %#o)", ErrFolder, path, info.Perm), "use a folder below /run")
	}
	return nil
}
