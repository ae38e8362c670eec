package ownedfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// HandOver gives a file that root has just made to the owner of the folder that it lies in. Otherwise a command run by
// root would leave files that the plugin under its own user cannot read, lock or replace. For other users it does
// nothing. Call it only for a file that this process made (O_EXCL): an older one may be a hard link to a file that the
// folder's owner has no right to.
func HandOver(file *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	folder, err := statFolder(filepath.Dir(file.Name()))
	if err != nil {
		return err
	}
	if folder.UID == 0 {
		return nil
	}
	return file.Chown(int(folder.UID), int(folder.GID))
}

// Make makes a file that must not exist yet, with HandOver done; nothing is left of one that fails. flags are those of
// os.OpenFile besides O_CREATE and O_EXCL. Errors of the system are *fs.PathError.
func Make(path string, flags int, perm fs.FileMode) (*os.File, error) {
	file, err := os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	if err := HandOver(file); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(path))
	}
	return file, nil
}

// OpenOrMake opens the file at path, or makes it as Make does, and reports which of the two it was. It follows no link
// and does not wait for the other end of a FIFO.
func OpenOrMake(path string, flags int, perm fs.FileMode) (file *os.File, made bool, err error) {
	const attempts = 5
	flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK
	for range attempts {
		if file, err = Make(path, flags, perm); !errors.Is(err, fs.ErrExist) {
			return file, true, err
		}
		if file, err = os.OpenFile(path, flags, 0); !errors.Is(err, fs.ErrNotExist) {
			return file, false, err
		}
	}
	return nil, false, err // removed between the two, again and again
}

// MakeFolder makes the folder and what is missing above it, each with mode perm whatever the umask, and gives what root
// makes to the owner of the folder around it. A folder that is there stays as it is. made reports whether it was made.
func MakeFolder(path string, perm fs.FileMode) (made bool, err error) {
	if _, err := statFolder(path); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if above := filepath.Dir(path); above != path {
		if _, err := MakeFolder(above, perm); err != nil {
			return false, err
		}
	}
	if err := os.Mkdir(path, perm); err != nil {
		if errors.Is(err, fs.ErrExist) { // by another process meanwhile, or a link that leads nowhere
			_, err = statFolder(path)
		}
		return false, Explain(path, err)
	}
	// The folder as it was made, and not what somebody put in its place.
	folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return true, Explain(path, err)
	}
	defer folder.Close()
	return true, errors.Join(folder.Chmod(perm), HandOver(folder))
}

// MayWrite reports whether this process could make files in the folder, without trying: nil, or an error that says why
// not and what to do.
func MayWrite(folder string) error {
	if _, err := statFolder(folder); err != nil {
		return Explain(folder, err)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, folder, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return Explain(filepath.Join(folder, "."), &fs.PathError{Op: "writing to", Path: folder, Err: err})
	}
	return nil
}

// FolderOwner returns the user that the folder belongs to, also behind a link.
func FolderOwner(folder string) (uid uint32, err error) {
	info, err := statFolder(folder)
	return info.UID, err
}

// statFolder looks at the folder itself, also behind a link.
func statFolder(path string) (Info, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return Info{}, &fs.PathError{Op: "stat", Path: path, Err: unix.ENOTDIR}
	}
	return fromStat(&st), nil
}

// Explain adds to err, which came of opening, making or replacing the file at path, whom it belongs to and what to do.
// Other errors, and one that has a hint, stay as they are.
func Explain(path string, err error) error {
	if err == nil || hint.Of(err) != "" {
		return err
	}
	folder := filepath.Dir(path)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return hint.Wrap(err, fmt.Sprintf("free space or inodes there: df -h %s; df -i %s", folder, folder))
	case errors.Is(err, unix.EROFS):
		return hint.Wrap(err, "mount the file system of "+folder+" read-write")
	case errors.Is(err, unix.ELOOP):
		return hint.Wrap(err, path+" is a symbolic link, and none may be there: find out who made it, then remove the link")
	case errors.Is(err, unix.ENOTDIR):
		return hint.Wrap(err, "see which part of the path is not a folder: namei -l "+path)
	case errors.Is(err, fs.ErrPermission):
		return explainPermission(path, folder, err)
	}
	return err
}

// explainPermission names the owner of the file, or else that of the folder, who keeps us out.
func explainPermission(path, folder string, err error) error {
	around, folderErr := statFolder(folder)
	if folderErr != nil {
		return hint.Wrap(err, fmt.Sprintf("let uid %d enter the folders on the way: namei -l %s", os.Geteuid(), path))
	}
	info, _, fileErr := Lstat(path)
	switch {
	case fileErr == nil && around.UID == uint32(os.Geteuid()) && info.UID != around.UID:
		return hint.Wrap(fmt.Errorf("%w: it belongs to uid %d (mode %04o)", err, info.UID, info.Perm),
			fmt.Sprintf("as root: chown %d:%d %s", around.UID, around.GID, path))
	case fileErr == nil && info.UID == uint32(os.Geteuid()):
		return hint.Wrap(fmt.Errorf("%w: it has mode %04o", err, info.Perm), "chmod u+rw "+path)
	}
	return hint.Wrap(fmt.Errorf("%w: %s belongs to uid %d (mode %04o)", err, folder, around.UID, around.Perm),
		fmt.Sprintf("run this as uid %d or as root", around.UID))
}
