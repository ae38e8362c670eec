package ownedfile

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// acl is what a POSIX access control list adds to the mode. With one, the mode's group bits are the list's mask and say
// nothing of the group.
type acl uint8

const (
	aclNone     acl = iota // there is none, or the file system has none
	aclHarmless            // it lets nobody write but root, our own user and the file's owner
	aclWriters             // it lets somebody else write, or cannot be understood
)

// HasACL reports whether an access control list says more than the mode.
func (i Info) HasACL() bool { return i.acl != aclNone }

// The attribute and its format: linux/posix_acl_xattr.h. A header of 4 bytes, then entries of 8.
const (
	aclName     = "system.posix_acl_access"
	aclVersion  = 2
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclWrite    = 0x2
	maxACL      = 4096 // bytes
)

// aclOf reads the list by get, which is fgetxattr(2) or getxattr(2).
func aclOf(get func(buf []byte) (int, error), uid, gid uint32) acl {
	buf := make([]byte, maxACL)
	n, err := get(buf)
	switch {
	case errors.Is(err, unix.ERANGE):
		return aclWriters
	case err != nil: // none, or not visible
		return aclNone
	}
	return parseACL(buf[:n], uid, gid)
}

// parseACL judges the list of a file that belongs to uid and gid.
func parseACL(b []byte, uid, gid uint32) acl {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return aclWriters
	}
	mask, others := uint16(aclWrite), uint16(0)
	for e := b[4:]; len(e) > 0; e = e[8:] {
		tag, perm, id := binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint16(e[2:]), binary.LittleEndian.Uint32(e[4:])
		switch {
		case tag == aclMask:
			mask = perm
		case tag == aclUser && id != 0 && id != uid && id != uint32(os.Geteuid()),
			tag == aclGroupObj && gid != 0,
			tag == aclGroup && id != 0:
			others |= perm
		}
	}
	if others&mask&aclWrite != 0 {
		return aclWriters
	}
	return aclHarmless
}
