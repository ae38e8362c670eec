package proc

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary play a parent: with PROC_PARENT set it starts a child, prints its pid and waits to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("PROC_PARENT"); dir != "" {
		p, err := Start(Spec{Name: "child", Path: "sleep", Args: []string{"300"}, Log: filepath.Join(dir, "log")})
		if err != nil {
			os.Exit(3)
		}
		_, _ = os.Stdout.WriteString(strconv.Itoa(p.PID()) + "\n")
		<-p.Done()
		os.Exit(4)
	}
	os.Exit(m.Run())
}

func start(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Spec{Name: "child", Path: "sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestEndAndLog(t *testing.T) {
	t.Parallel()
	p := start(t, "echo one; echo two >&2; echo three; exit 7")
	<-p.Done()
	if p.ExitCode() != 7 || p.Running() {
		t.Errorf("exit code %d, running %v; want 7, false", p.ExitCode(), p.Running())
	}
	if got := p.Tail(2); got != "two\nthree" {
		t.Errorf("tail = %q", got)
	}
	p.Kill() // of an ended child: no effect, no wait
	if err := p.Stop(time.Second); err != nil {
		t.Errorf("stopping an ended child: %v", err)
	}
}

func TestStopReachesGrandchildren(t *testing.T) {
	t.Parallel()
	p := start(t, "sleep 300 & echo $!; wait")
	grandchild := waitLine(t, p)
	if err := p.Stop(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	waitGone(t, grandchild)
}

func TestStopKillsTheStubborn(t *testing.T) {
	t.Parallel()
	p := start(t, "trap '' TERM; echo 0; while :; do sleep 0.05; done")
	waitLine(t, p)
	if err := p.Stop(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("err = %v, want one that says it was killed", err)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	_, err := Start(Spec{Name: "nothing", Path: "/nonexistent/program", Log: filepath.Join(t.TempDir(), "log")})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v, want not exist", err)
	}
}

// waitLine gives the number that the child printed first.
func waitLine(t *testing.T, p *Process) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if n, err := strconv.Atoi(strings.TrimSpace(p.Tail(1))); err == nil {
			return n
		}
	}
	t.Fatal("the child printed nothing")
	return 0
}

// waitGone waits until a process is no more, or is a zombie that only waits for an init to reap it.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return
		}
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d is still there", pid)
}
