package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// A library that prints 16 MiB in the middle of a call is read to the end, and a part of it is logged.
func TestFlood(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]faultp11.Misbehaviour{"stdout": faultp11.FloodStdout, "stderr": faultp11.FloodStderr} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.giveKey()
			c, s, key := r.connected()
			r.module.Misbehave("C_GetSlotList", how).Once()
			if _, err := c.For(t.Context(), time.Minute).Slots(); err != nil {
				t.Error(err)
			}
			r.module.Misbehave("C_Encrypt", how).Once()
			if err := seal(c, time.Now().Add(time.Minute), s, key); err != nil {
				t.Error(err)
			}
			c.End()
			if n := strings.Count(r.log.String(), "the PKCS#11 module prints"); n < 1 || n > 100 {
				t.Errorf("%d lines are logged", n)
			}
		})
	}
}

// signalsOf reads a mask of a process from its status, as SigIgn.
func signalsOf(t *testing.T, pid int, mask string) uint64 {
	t.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, mask+":"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return set
		}
	}
	t.Fatalf("no %s in %s", mask, status)
	return 0
}

// A library that replaces signal handlers, with a stack of their own or without, does no harm to the worker: it works, does
// not end by SIGTERM, and a crash of it is told, or is a call that hangs.
func TestSignalHandlers(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]faultp11.Misbehaviour{"on a stack of their own": faultp11.TakeSignals, "without": faultp11.TakeSignalsOffStack} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.giveKey()
			r.module.Misbehave("C_Initialize", how).Once()
			c, s, key := r.connected()
			c = c.For(t.Context(), 20*time.Second)
			pid := r.module.Processes()[0]
			stop := signalThreads(pid)
			for range 200 {
				if _, err := c.Slots(); err != nil {
					t.Fatal(err)
				}
				if err := seal(c, time.Time{}, s, key); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			if ignored := signalsOf(t, pid, "SigIgn"); ignored&(1<<(unix.SIGTERM-1)) == 0 {
				t.Errorf("SIGTERM is not ignored any more: %x", ignored)
			}
			// Its handler of SIGSEGV returns, and so the faulty instruction is tried without end.
			r.module.Die("C_Encrypt", faultp11.Segfault).Once()
			if err := seal(c, time.Now().Add(time.Second), s, key); !errors.Is(err, p11.ErrOverdue) {
				t.Errorf("a crash whose signal the library handles: %v", err)
			}
			c.End()
		})
	}
}

// signalThreads sends signals to every thread of a process, wherever it is, until stop.
func signalThreads(pid int) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			tasks, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGPIPE, unix.SIGCHLD, unix.SIGPROF, unix.SIGURG} {
					_ = unix.Tgkill(pid, tid, signal) // the thread may have ended
				}
			}
			select {
			case <-done:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// The end of a worker is noticed although a process that its library forked keeps all its descriptors. What belongs to the
// worker's process group ends with it.
func TestForkedHelper(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]faultp11.Misbehaviour{"helper": faultp11.ForkHelper, "daemon": faultp11.ForkDaemon} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.giveKey()
			r.module.Misbehave("C_Initialize", how).Once()
			c, s, key := r.connected()
			helper := r.module.Helper()
			t.Cleanup(func() { _ = unix.Kill(helper, unix.SIGKILL) })
			r.module.Die("C_Encrypt", faultp11.Segfault).Once()
			if err := seal(c, time.Now().Add(20*time.Second), s, key); !errors.Is(err, p11.ErrEnded) {
				t.Errorf("the call in which it died: %v", err)
			}
			select {
			case <-c.Ended():
			case <-time.After(20 * time.Second):
				t.Fatal("its end is not noticed")
			}
			if how == faultp11.ForkHelper {
				eventually(t, "the helper is left", func() bool { return isDead(helper) })
			}
		})
	}
}

// isDead reports whether a process has ended; one that nobody has waited for has.
func isDead(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, after, _ := bytes.Cut(stat, []byte(") "))
	return err != nil || bytes.HasPrefix(after, []byte("Z"))
}

// eventually polls what another process does.
func eventually(t *testing.T, otherwise string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
	}
}

// 20 workers whose library forks leave no descriptor and no dead process behind, also where orphans come to this process,
// as they do to the first one of a container. It is not parallel: nothing else opens descriptors meanwhile.
func TestForksLeaveNothing(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	r := newRig(t)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for range 20 {
		r.module.Misbehave("C_Initialize", faultp11.ForkHelper).Once()
		c := r.start()
		if err := c.Initialize(); err != nil {
			t.Fatal(err)
		}
		c.End()
		eventually(t, "the helper is left, at least as a dead process", func() bool {
			return errors.Is(unix.Kill(r.module.Helper(), 0), unix.ESRCH)
		})
	}
	eventually(t, "descriptors are left", func() bool { return count() <= before }) // what is printed is read for a moment longer
}

// A library that has C_GetTokenInfo fail until it was asked for the slot.
func TestSlotInfoFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.giveKey()
	r.module.Traits(faultp11.SlotInfoFirst)
	c, s, key := r.connected()
	if err := seal(c, time.Time{}, s, key); err != nil {
		t.Error(err)
	}
}

// A library that reads the PIN as a C string gets one.
func TestPINIsAString(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.module.Traits(faultp11.Strlen)
	r.makeKey()
	c, s, key := r.connected()
	if err := seal(c, time.Time{}, s, key); err != nil {
		t.Error(err)
	}
}

// A library that is written in Go: two Go runtimes in the worker.
func TestLibraryInGo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.giveKey()
	r.cfg.Module = faultp11.BuildGo(t)
	r.cfg.Environment = append(r.cfg.Environment, "GOMODULE_REAL="+r.token.Module, "SOFTHSM2_CONF="+r.token.Conf())
	c, s, key := r.connected()
	stop := c.For(t.Context(), time.Minute)
	for range 500 {
		if err := seal(stop, time.Time{}, s, key); err != nil {
			t.Fatal(err)
		}
		if _, err := stop.Slots(); err != nil {
			t.Fatal(err)
		}
	}
}

// A worker whose program is killed has ended after connectTimeout, in whatever call it is, and with it what the library forked.
func TestProgramKilledDuringACall(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]string{"initialize": "C_Initialize", "login": "C_Login", "none": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), starterMark+"="+r.module.Path(), starterLimit+"=2s")
			if hang == "C_Login" {
				cmd.Env = append(cmd.Env, starterPIN+"="+r.token.PINFile)
			}
			if hang != "C_Initialize" {
				r.module.Misbehave("C_Initialize", faultp11.ForkHelper).Once()
			}
			if hang != "" {
				defer r.module.Hang(hang)()
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if hang != "" {
				err = r.module.WaitHung(t.Context(), hang, 1)
			} else {
				_, err = bufio.NewReader(out).ReadString('\n')
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := r.module.WaitAlone(ctx); err != nil {
				t.Error(err)
			}
			t.Logf("the worker was gone after %s", time.Since(began).Round(time.Millisecond))
			if hang != "C_Initialize" {
				helper := r.module.Helper()
				t.Cleanup(func() { _ = unix.Kill(helper, unix.SIGKILL) })
				eventually(t, "the helper is left", func() bool { return isDead(helper) })
			}
		})
	}
}

// A worker ends after its program although its library has every thread of the Go runtime hang in a signal handler.
func TestProgramKilledWhileHandlersHang(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.module.Misbehave("C_Initialize", faultp11.HangInHandlers).Once()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	// Go preempts by SIGURG: on a busy machine the worker would hang before it has answered.
	cmd.Env = append(os.Environ(), starterMark+"="+r.module.Path(), starterLimit+"=1s", "GODEBUG=asyncpreemptoff=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	signalThreads(r.module.Processes()[0])() // once each
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if err := r.module.WaitAlone(ctx); err != nil {
		t.Error(err)
	}
}

// A token with a PIN pad gets no PIN.
func TestPINPad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.module = faultp11.New(t, r.token.Module, faultp11.Options{SoftHSMConf: r.token.Conf(), PINPad: r.token.PINFile})
	r.cfg.Module = r.module.Path()
	r.module.Traits(faultp11.PINPad)
	c := r.start()
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	s, err := c.OpenSession(r.slot(c), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login(s, pinfile.Identity{}); err != nil {
		t.Error(err)
	}
}
