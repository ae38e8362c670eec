package daemon

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/hsm-kms/hsm-kms/internal/harden"
)

// keepFromSwap locks the memory where that is allowed, and says in one line what came of it. Swap is a disk.
func keepFromSwap(ctx context.Context, log *slog.Logger) {
	if err := harden.LockMemory(); err != nil {
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

// boundProcessors keeps serve to one processor at a time, unless an operator chose otherwise. A request is a chain of short
// steps, each of which wakes the next; with several processors Go moves them from one to another, and each move costs more
// than the step. One processor is enough for more than a control plane asks (docs/performance.md), and a system call
// that blocks gives it up.
func boundProcessors() {
	if _, set := os.LookupEnv("GOMAXPROCS"); !set {
		runtime.GOMAXPROCS(1)
	}
}
