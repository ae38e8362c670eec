//go:build !linux

package hold

import (
	"time"

	"golang.org/x/sys/unix"
)

// leaveOutOfCores does nothing here: the advice is Linux's. Core files are off (package harden).
func leaveOutOfCores([]byte) error { return nil }

// sinceBoot is the nearest there is to CLOCK_BOOTTIME, which is Linux's: elsewhere the plugin runs for development only.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}
