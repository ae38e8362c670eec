package hardening

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Whatever umask it is started with, the program lets nobody read what is made in its process: by us, or by the module, which
// asks for modes of its own (proc_pid_status(5), Umask).
func TestUmask(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	cmd := start(t, v.dir, "-c 0 && umask 0", v.token.Env(), program, "serve", "--config", v.plugin.Config())
	eventually(t, func() error { _, err := os.Stat(v.plugin.Socket()); return err })
	status := strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))), " ")
	if !strings.Contains(status, "Umask: 0077 ") {
		t.Errorf("another umask than 0077: %s", status)
	}
}
