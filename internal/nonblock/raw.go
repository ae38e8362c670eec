//go:build !race && !msan && !asan

package nonblock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func read(fd uintptr, b []byte) (int, error)  { return raw(unix.SYS_READ, fd, b) }
func write(fd uintptr, b []byte) (int, error) { return raw(unix.SYS_WRITE, fd, b) }

func raw(number, fd uintptr, b []byte) (int, error) {
	n, _, err := unix.RawSyscall(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if err != 0 {
		return 0, err
	}
	return int(n), nil
}
