package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// harden keeps what this process will know, a PIN and DEKs, from core files and from debuggers of its own uid. It is the
// first thing that every command does, since there is no state before it in which a secret was read. Call it once.
//
// No core file has two parts: RLIMIT_CORE does not count where core_pattern names a program (systemd-coredump), and
// the flag of denyPeeking (where there is one) does not survive an execve. An error leaves the process as safe as the
// system lets it be; it is no reason not to serve.
func harden() error {
	var failed []error
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		failed = append(failed, fmt.Errorf("setting the limit of core files to 0: %w", err))
	}
	if err := denyPeeking(); err != nil {
		failed = append(failed, fmt.Errorf("closing the memory to debuggers: %w", err))
	}
	return errors.Join(failed...)
}

// keepFromSwap locks the memory where that is allowed, and says in one line what came of it. Swap is a disk.
func keepFromSwap(ctx context.Context, log *slog.Logger) {
	if err := lockMemory(); err != nil {
		log.InfoContext(ctx, "memory is not locked: keep this process from swap by other means", "reason", err,
			"hint", "no swap on the node, MemorySwapMax=0 in the unit (manifests systemd has it), or an unlimited memlock limit")
		return
	}
	log.InfoContext(ctx, "memory is locked: no page of it goes to swap")
}

// softMemory is where the collector begins to work harder, far above what serve needs (10 MiB) and below the 256 MiB at
// which the static pod is killed: what a flood of requests leaves behind must not double before it is collected.
const softMemory = 128 << 20

// boundMemory sets the soft limit, unless an operator did.
func boundMemory() {
	if _, set := os.LookupEnv("GOMEMLIMIT"); !set {
		debug.SetMemoryLimit(softMemory)
	}
}
