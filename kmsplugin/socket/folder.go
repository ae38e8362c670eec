package socket

import (
	"cmp"
	"fmt"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// prepareFolder makes the folder if it is missing, and checks that only root and we can replace what is in it.
func prepareFolder(folder string, podVolume bool) error {
	// Whatever the umask, a group's members must get to the socket.
	_, err := ownedfile.MakeFolder(folder, 0o755)
	if _, _, nothing := ownedfile.Lstat(folder); nothing != nil && err != nil { // what is there instead, CheckFolder names
		return hint.Wrap(fmt.Errorf("making the folder: %w", err), cmp.Or(hint.Of(err), "make "+folder+", owned by this user with mode 0755"))
	}
	return CheckFolder(folder, podVolume)
}

// CheckFolder reports, without changing anything, whether only root and our own user can replace what is in the
// folder: its own mode, and that of every folder and link on the way. With podVolume a volume of the pod may be open to all
// that mount it. Errors wrap ErrFolder and mostly have a hint.
func CheckFolder(folder string, podVolume bool) error {
	openings, _, err := ownedfile.Others(folder)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFolder, err)
	}
	if podVolume {
		openings = ownedfile.WithoutVolumes(openings)
	}
	switch {
	case len(openings) == 0:
		return nil
	case openings[0].Above:
		return hint.Wrap(fmt.Errorf("%w: above it, %s", ErrFolder, openings[0].What), "use a folder below /run, or "+openings[0].Fix)
	}
	return hint.Wrap(fmt.Errorf("%w: %s", ErrFolder, openings[0].What), openings[0].Fix)
}
