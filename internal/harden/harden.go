// Package harden closes a process's memory to others: no core file, no debugger, no swap. Both the plugin and its workers
// need that, and an exec undoes it.
//
// It depends on no other package. What it does holds for the whole process, so it is called once, at the start.
package harden

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Process keeps what this process will know, a PIN and DEKs, from core files and from debuggers of its own uid. It is the
// first thing that every command does, since there is no state before it in which a secret was read. Call it once.
//
// No core file has two parts: RLIMIT_CORE does not count where core_pattern names a program (systemd-coredump), and
// the flag of denyPeeking (where there is one) does not survive an execve. An error leaves the process as safe as the
// system lets it be; it is no reason not to serve.
func Process() error {
	var failed []error
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		failed = append(failed, fmt.Errorf("setting the limit of core files to 0: %w", err))
	}
	if err := denyPeeking(); err != nil {
		failed = append(failed, fmt.Errorf("closing the memory to debuggers: %w", err))
	}
	return errors.Join(failed...)
}
