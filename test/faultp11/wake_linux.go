package faultp11

import (
	"math"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wake wakes every thread of any process that waits on the word's futex. Its error does not matter: a waiter looks
// again by itself every 50 ms.
func wake(word *atomic.Uint64) {
	const futexWake = 1
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, math.MaxInt32, 0, 0, 0)
}
