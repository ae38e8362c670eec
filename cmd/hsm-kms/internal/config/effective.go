package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// UIDs returns the user ids that may connect: the list of the file, or root and the uid of this process. Sorted, each
// once.
func (s *Socket) UIDs() []uint32 {
	uids := slices.Clone(s.AllowedUIDs)
	if uids == nil {
		uids = []uint32{0, uint32(os.Geteuid())}
	}
	slices.Sort(uids)
	return slices.Compact(uids)
}

// GID returns the number of the socket's group, and false when the file names none. It looks a name up in this
// machine's user database, and fails, with a hint, when that does not have it.
func (s *Socket) GID() (gid uint32, ok bool, err error) {
	if s.Group == "" {
		return 0, false, nil
	}
	number := s.Group
	if !isNumber(number) {
		group, err := user.LookupGroup(s.Group)
		if err != nil {
			return 0, false, hint.Wrap(fmt.Errorf("finding socket.group %q: %w", s.Group, err),
				"groupadd --system "+s.Group+", or give the group's number in socket.group")
		}
		number = group.Gid
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return 0, false, hint.Wrap(fmt.Errorf("finding socket.group %q: %w", s.Group, err), "name a group of this machine: getent group")
	}
	return uint32(n), true, nil
}

// MaxBytes returns the size at which the audit file is rotated.
func (a *Audit) MaxBytes() int64 { return int64(a.MaxSizeMB) * 1_000_000 }

// Warnings returns what is allowed and yet worth a second thought, one sentence each, in the order of the file. Not
// for mistakes: those are errors.
func (c *Config) Warnings() []string {
	var all []string
	warn := func(on bool, text string) {
		if on {
			all = append(all, text)
		}
	}
	warn(c.KeyRing == PlaceholderRing,
		"keyRing is "+PlaceholderRing+", as in the samples: a ring belongs to one cluster, and another cluster that copied them shares its keys")
	warn(c.Socket.Mode == 0o660 && c.Socket.Group == "",
		"socket.mode 0660 without socket.group: the file is open to our own group, and none of it is let in unless allowedUIDs has it")
	warn(len(c.RefuseKeys) > 0, fmt.Sprintf("refuseKeys names %d: what is still under these keys cannot be read", len(c.RefuseKeys)))
	warn(c.AllowImportedKeys, "allowImportedKeys: keys are served of which copies may exist outside the token")
	warn(c.AllowUnsafeModulePath, "allowUnsafeModulePath: a module is loaded that others may be able to replace")
	warn(c.HTTP.Address != "" && !loopback(c.HTTP.Address),
		fmt.Sprintf("http.address %s is not loopback: metrics and health are open to the network without authentication", c.HTTP.Address))
	warn(c.HangExitAfter != 0, "hangExitAfter has no effect any more: remove it; a later version will refuse it")
	warn(c.Audit.Path == "", "audit.path is empty: no Encrypt or Decrypt is recorded")
	return all
}

// loopback reports whether the host of a host:port is for certain this machine alone.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// ShutOutHint is what to do about ShutOut.
const ShutOutHint = `set socket.mode: "0660" and socket.group to a group of these users, or take them off socket.allowedUIDs`

// ShutOut returns which of the users that may connect the socket's file keeps out: by its owner, group and mode if it is
// there, else by those that it would get from this process. Users whose groups this machine does not know are not named.
func (s *Socket) ShutOut(lstat func(string) (ownedfile.Info, bool, error)) []uint32 {
	file, _, err := lstat(s.Path)
	if err != nil {
		file = ownedfile.Info{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Perm: s.Mode.Perm()}
		if gid, named, err := s.GID(); err == nil && named {
			file.GID = gid
		}
	}
	return slices.DeleteFunc(s.UIDs(), func(uid uint32) bool {
		return uid == 0 || uid == file.UID || file.Perm&0o020 != 0 && mayBeIn(uid, file.GID) || file.Perm&0o002 != 0
	})
}

// mayBeIn reports whether the user is in the group, by its primary or a supplementary one, or is not known here.
func mayBeIn(uid, gid uint32) bool {
	known, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return true
	}
	groups, err := known.GroupIds()
	return err != nil || slices.Contains(groups, strconv.FormatUint(uint64(gid), 10))
}
