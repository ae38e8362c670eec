package peers

import (
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups is the kernel's own bound on supplementary groups (NGROUPS_MAX).
const maxGroups = 65536

// ask reads SO_PEERCRED and SO_PEERGROUPS of a connected Unix socket.
func ask(fd int) (Peer, []uint32, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, nil, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	groups, err := peerGroups(fd)
	if err != nil {
		// A kernel before 4.13. The primary group still counts.
		groups = nil
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, groups, nil
}

// peerGroups reads SO_PEERGROUPS, for which golang.org/x/sys has no function. On ERANGE the kernel has said in size how
// many bytes it needs.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size) > len(groups)*4 && size <= maxGroups*4:
			groups = make([]uint32, size/4)
		default:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
		}
	}
}

// executable is the file that the process runs. It can be read only of our own user's processes, or by root.
func executable(pid int) string {
	if pid <= 0 {
		return ""
	}
	path, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil {
		return ""
	}
	return path
}
