// Package ownedfile is about who owns files and who may write to them. It opens files whose owner and mode decide whether
// they may be believed, it finds everybody who could change what is at a path, and it gives what root makes to the owner
// of the folder. What it reports of an open file is what the descriptor says, so nobody can swap the file between look
// and use. What is good enough is each caller's own rule, and stays with the caller.
//
// It depends on hint alone. Functions keep nothing and may be called from any number of goroutines.
package ownedfile

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Info is what the system says of an open file. It is comparable: equal values mean the same, unchanged file.
type Info struct {
	Device, Inode uint64
	Size          int64       // bytes
	Ctime         int64       // last change of content, owner or mode, in nanoseconds since 1970
	UID, GID      uint32      // owner
	Perm          fs.FileMode // the twelve permission bits as chmod takes them, 0o7777
	Regular       bool
	acl           acl
}

// Open opens path for reading, following links, and returns what the opened file is. It does not wait for the other
// end of a FIFO. Errors are *fs.PathError as from os.Open. The caller closes the file.
func Open(path string) (*os.File, Info, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, Info{}, err
	}
	info, err := Stat(file)
	if err != nil {
		_ = file.Close() // the error that counts is the one above
		return nil, Info{}, err
	}
	return file, info, nil
}

// Stat tells what an open file is now.
func Stat(file *os.File) (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return Info{}, fmt.Errorf("looking at %s: %w", file.Name(), err)
	}
	info := fromStat(&st)
	info.acl = aclOf(func(buf []byte) (int, error) { return unix.Fgetxattr(int(file.Fd()), aclName, buf) }, st.Uid, st.Gid)
	return info, nil
}

// Lstat tells what path itself is, without following a link at its end, and whether it is a link. Use it for folders
// and links on the way to a file, which cannot be held open until the file's user, the dynamic linker, has come by.
func Lstat(path string) (info Info, link bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Info{}, false, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	info, link = fromStat(&st), st.Mode&unix.S_IFMT == unix.S_IFLNK
	if !link {
		info.acl = aclOf(func(buf []byte) (int, error) { return unix.Lgetxattr(path, aclName, buf) }, st.Uid, st.Gid)
	}
	return info, link, nil
}

// fromStat levels the integer types, which differ between Linux and macOS.
func fromStat(st *unix.Stat_t) Info {
	return Info{
		Device:  uint64(st.Dev), // int32 on macOS
		Inode:   st.Ino,
		Size:    st.Size,
		Ctime:   st.Ctim.Nano(),
		UID:     st.Uid,
		GID:     st.Gid,
		Perm:    fs.FileMode(st.Mode & 0o7777),
		Regular: st.Mode&unix.S_IFMT == unix.S_IFREG,
	}
}

// OwnerTrusted reports whether the file belongs to root or to the user that this process runs as. Anybody else who
// owns a file can give himself every right to it, whatever its mode says now.
func (i Info) OwnerTrusted() bool {
	return i.UID == 0 || int(i.UID) == os.Geteuid()
}

// FixOwner says what to do about a file at path whose owner is not trusted. Root is told to become the plugin's user first:
// the plugin could not read a file that was taken from it.
func (i Info) FixOwner(path string) string {
	if os.Geteuid() == 0 {
		return "run this as the user that the plugin runs as; if that is root: chown root " + path
	}
	return fmt.Sprintf("chown %d %s", os.Geteuid(), path)
}

// OthersMayWrite reports whether the mode or an access control list lets anybody but the owner, root and our own user
// write. Group root counts as root.
func (i Info) OthersMayWrite() bool {
	groupWrites := i.acl == aclNone && i.Perm&0o020 != 0 && i.GID != 0
	return i.Perm&0o002 != 0 || groupWrites || i.acl == aclWriters
}

// Sticky reports whether the file is a folder with the sticky bit, in which one may not remove what belongs to another.
func (i Info) Sticky() bool { return i.Perm&unix.S_ISVTX != 0 }
