package proc

import (
	"context"
	"os/exec"
	"syscall"
)

// Command is exec.CommandContext for a command that soon ends by itself. A Ctrl-C in the terminal does not reach it: it
// would die of that before we have seen the signal ourselves, and look like a failure. The context ends it.
func Command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // the caller is the build and the tests
	// No parent-death signal here: it is bound to the thread that forks, and nobody holds one (see run).
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}
