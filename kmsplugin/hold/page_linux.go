package hold

import (
	"time"

	"golang.org/x/sys/unix"
)

func leaveOutOfCores(memory []byte) error { return unix.Madvise(memory, unix.MADV_DONTDUMP) }

// sinceBoot is CLOCK_BOOTTIME: it goes on while the machine is suspended, and nobody sets it.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // it fails for clocks that do not exist
	return time.Duration(ts.Nano())
}
