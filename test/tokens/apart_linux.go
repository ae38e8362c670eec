package tokens

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ownNamespaces says, in the environment of a test's own process, that it has namespaces of its own.
const ownNamespaces = "HSM_KMS_TEST_NAMESPACES"

const namespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID

// runApart runs cmd in namespaces of its own if it can, else without.
func runApart(cmd *exec.Cmd) ([]byte, error) {
	// The kernel sends the parent-death signal when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	plain := *cmd
	plain.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: namespaces}
		cmd.Env = append(cmd.Env, ownNamespaces+"=1")
		out, err := cmd.CombinedOutput()
		if cmd.Process != nil || !errors.Is(err, unix.EPERM) {
			return out, err
		}
	}
	return plain.CombinedOutput()
}

// cover hides folders behind empty ones that only this process and its children see. Without namespaces of its own
// the token cannot be had.
func cover(t *testing.T, token string, folders ...string) {
	t.Helper()
	if os.Getenv(ownNamespaces) == "" {
		unable(t, token, "its folders are fixed, and a private view of them needs root and mount namespaces")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("keeping mounts to ourselves: %v", err)
	}
	for _, folder := range folders {
		if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			t.Fatalf("covering %s: %v", folder, err)
		}
	}
}
