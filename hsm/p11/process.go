package p11

/*
#include "process.h"
*/
import "C"

import (
	"fmt"
	"syscall"
	"time"
)

// DieBySignals has SIGSEGV, SIGABRT and their like end this process. For a worker.
func DieBySignals() { C.die_by_signals() }

// TameSignals undoes what a module may have done to the signal handlers of this process. For a worker.
func TameSignals() { C.tame_signals() }

// EndWith has this process end when the other end of the socket fd has been closed for limit, whatever state the Go
// runtime is in by then. For a worker, once.
func EndWith(fd uintptr, limit time.Duration) error {
	if failed := C.end_with(C.int(fd), C.int(limit.Milliseconds())); failed != 0 {
		return fmt.Errorf("starting the thread that ends this process: %w", syscall.Errno(failed))
	}
	return nil
}
