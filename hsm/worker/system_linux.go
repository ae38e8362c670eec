package worker

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// programPath leads to this very program, also when the file was replaced since it was started.
func programPath() string { return "/proc/self/exe" }

func streamPair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

// lockFile makes the file of the critical lock.
func lockFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("critical", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making the critical lock: %w", err)
	}
	return os.NewFile(uintptr(fd), "critical"), nil
}

// awaitExit returns when the process has ended, and leaves it to be waited for. It reports whether it could wait.
func awaitExit(pid int) bool {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return err == nil
		}
	}
}

// resident is the resident memory of a process (proc_pid_statm(5), the second field, in pages); 0: it is not known.
func resident(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// inherited lists, in order, the open descriptors beyond the standard three that survived an exec.
func inherited() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("listing descriptors: %w", err)
	}
	var open []int
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= 2 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			open = append(open, fd)
		}
	}
	slices.Sort(open) // the folder is in the order of the names
	return open, nil
}

// adoptOrphans makes this process the parent of what its children leave behind.
func adoptOrphans() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }
