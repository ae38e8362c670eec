package peers

import (
	"os"

	"golang.org/x/sys/unix"
)

// ask reads LOCAL_PEERCRED and LOCAL_PEERPID of a connected Unix socket. The first group is the primary one.
func ask(fd int) (Peer, []uint32, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return Peer{}, nil, os.NewSyscallError("getsockopt LOCAL_PEERCRED", err)
	}
	pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	if err != nil {
		pid = 0
	}
	groups := cred.Groups[:max(0, min(int(cred.Ngroups), len(cred.Groups)))]
	p := Peer{PID: pid, UID: cred.Uid}
	if len(groups) > 0 {
		p.GID = groups[0]
	}
	return p, append([]uint32(nil), groups...), nil
}

// executable is unknown: macOS has no file that tells it.
func executable(int) string { return "" }
