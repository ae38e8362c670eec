package p11

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// inTest is set where this program is run as a command.
const inTest = "TIMERSLACK_TEST"

// TestMain as a command prints its timer slack in nanoseconds, and serve that of a worker that it starts.
func TestMain(m *testing.M) {
	if os.Getenv(inTest) == "" {
		os.Exit(m.Run())
	}
	slack, err := ownSlack()
	if err != nil {
		fmt.Print(err)
	}
	fmt.Print(slack)
	if os.Args[1] == "serve" {
		worker, err := asCommand("worker")
		fmt.Print(", worker ", worker)
		if err != nil {
			fmt.Print(err)
		}
	}
}

// ownSlack is that of the calling thread.
func ownSlack() (int, error) { return unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0) }

// asCommand is what this program prints as that command.
func asCommand(name string) (string, error) {
	cmd := exec.Command("/proc/self/exe", name)
	cmd.Env = append(os.Environ(), inTest+"=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestTimerSlack: serve has its own, its worker the usual one, and another command what it was started with.
func TestTimerSlack(t *testing.T) {
	t.Parallel()
	inherited, err := ownSlack()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"serve": "500000, worker 50000", "keys": fmt.Sprint(inherited)} {
		if got, err := asCommand(name); err != nil || got != want {
			t.Errorf("%s: %q, want %q: %v", name, got, want, err)
		}
	}
}
