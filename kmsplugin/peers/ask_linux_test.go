package peers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectAs connects from a thread that has another user's credentials. They are the thread's alone, and the thread
// ends with the goroutine, because it is never unlocked.
func connectAs(t *testing.T, address string, uid, gid uint32, groups []uint32) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		var first unsafe.Pointer
		if len(groups) > 0 {
			first = unsafe.Pointer(&groups[0])
		}
		var errs []error
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first)},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				errs = append(errs, errno)
			}
		}
		conn, err := net.Dial("unix", address)
		if err := errors.Join(append(errs, err)...); err != nil {
			t.Errorf("connecting as uid %d: %v", uid, err)
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
	})
	wg.Wait()
	runtime.KeepAlive(groups)
}

func TestAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	group := uint32(4242)
	many := make([]uint32, 100)
	for i := range many {
		many[i] = uint32(5000 + i)
	}
	for name, c := range map[string]struct {
		gid    uint32
		groups []uint32
		want   bool
	}{
		"primary group":       {4242, nil, true},
		"supplementary group": {7777, []uint32{1, 4242}, true},
		"one of many":         {7777, append(many, 4242), true},
		"none of many":        {7777, many, false},
		"no groups":           {7777, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := fmt.Sprintf("@hsm-kms-test-%d-%s", os.Getpid(), name) // abstract: no folder to get through
			p, err := shake(t, Policy{UIDs: []uint32{0}, Group: &group}, address, func() {
				connectAs(t, address, 12345, c.gid, c.groups)
			})
			if c.want != (err == nil) {
				t.Errorf("error = %v", err)
			}
			if err == nil && (p.UID != 12345 || p.GID != c.gid) {
				t.Errorf("peer = %+v", p)
			}
		})
	}
}
