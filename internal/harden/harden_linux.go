package harden

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// denyPeeking makes the process undumpable (prctl(2), PR_SET_DUMPABLE): no core file, also none through a program in
// core_pattern; no ptrace and no /proc/PID/mem for other processes of the same uid, unless they have CAP_SYS_PTRACE.
// /proc/PID belongs to root from then on; what is world-readable there (status, stat, cmdline, limits) stays so, and
// SO_PEERCRED and SCM_CREDENTIALS do not depend on it. The flag belongs to the address space: any thread may set it.
func denyPeeking() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// errLimited: the kernel would count all address space against a limit, and refuse a later mmap of the Go runtime or of
// the module, which ends the process.
var errLimited = errors.New("RLIMIT_MEMLOCK is not unlimited, and CAP_IPC_LOCK is missing")

// LockMemory keeps all pages of the process from swap, now and later, where nothing limits that. DEKs pass through the Go
// heap, gRPC's buffers and the module's own memory, which are not ours to place, so single buffers will not do.
// MCL_ONFAULT (mlock2(2), Linux 4.4) locks a page when it is first touched: without it each thread's stack and each
// arena of Go and malloc would be resident as a whole, hundreds of MiB.
func LockMemory() error {
	if !mayLockAll() {
		return errLimited
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("locking memory: %w", err)
	}
	return nil
}

// mayLockAll reports whether no limit on locked memory applies.
func mayLockAll() bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil && limit.Cur == unix.RLIM_INFINITY {
		return true
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}
