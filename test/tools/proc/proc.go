// Package proc starts and stops the child processes of the tests, the demo and the tool build: etcd,
// kube-apiserver, hsm-kms, go build.
//
// A child never outlives us. It runs in a process group of its own, so that a Ctrl-C in the terminal reaches us alone
// and we stop the children in the right order; and where the kernel can (Linux), it is killed when we die
// ourselves, SIGKILL included.
package proc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Spec says what to start. Path is absolute or found in PATH.
type Spec struct {
	Name string   // for messages
	Path string   // program
	Args []string // without the program itself
	Env  []string // added to our own environment; the last of equal names wins
	Dir  string   // working directory; empty: ours
	Log  string   // file that stdout and stderr are appended to
}

// Process is a running or ended child. All methods may be called from several goroutines.
type Process struct {
	spec Spec
	pid  int
	done chan struct{}
	err  error // set before done is closed
}

// Start starts a child. The error of a child that ends at once is in Err, not here.
func Start(spec Spec) (*Process, error) {
	log, err := os.OpenFile(filepath.Clean(spec.Log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", spec.Name, err)
	}
	cmd := exec.Command(spec.Path, spec.Args...) //nolint:gosec // the caller is the build and the tests
	cmd.Dir = spec.Dir
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	p := &Process{spec: spec, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(cmd, log, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s (%s): %w", spec.Name, spec.Path, err)
	}
	return p, nil
}

// run keeps its thread until the child has ended: the kernel's parent-death signal is sent when the thread that
// forked ends, not the process, and Go ends idle threads at will.
func (p *Process) run(cmd *exec.Cmd, log io.Closer, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer log.Close()
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	p.pid = cmd.Process.Pid
	started <- nil
	p.err = cmd.Wait()
	close(p.done)
}

// PID is the child's process id, also after it ended.
func (p *Process) PID() int { return p.pid }

// Done is closed when the child has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the child has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err is the child's end as os/exec tells it (nil: exit 0). Only after Done.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// ExitCode is the child's exit code, -1 when a signal ended it. Only after Done.
func (p *Process) ExitCode() int {
	err := p.Err()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return 0
}

// Signal sends a signal to the child alone. A child that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) {
	if p.Running() {
		_ = syscall.Kill(p.pid, sig) // it may have ended just now
	}
}

// Kill ends the child and whatever it started with SIGKILL, and waits.
func (p *Process) Kill() {
	if p.Running() {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
	<-p.done
}

// Stop asks the child to end (SIGTERM to its group), waits for at most grace and then kills it. It returns an error
// when the child had to be killed.
func (p *Process) Stop(grace time.Duration) error {
	if p.Running() {
		_ = syscall.Kill(-p.pid, syscall.SIGTERM)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("stopping %s: still there %s after SIGTERM, killed", p.spec.Name, grace)
	}
}

// Tail gives the last n lines of the child's log, for a message about its failure.
func (p *Process) Tail(n int) string { return Tail(p.spec.Log, n) }

// Tail gives the last n lines of a file, of which at most the last 64 KiB are read.
func Tail(path string, n int) string {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 64<<10 {
		_, _ = f.Seek(-64<<10, io.SeekEnd)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return "(unreadable log: " + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
