package hardening

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// nobody is the uid and gid that the program and its attackers have where the tests run as root: root may attach to
// everything. Elsewhere they have ours.
const nobody = 65534

// victim is a token, its configuration and a user who runs the program on them.
type victim struct {
	t      *testing.T
	dir    string
	plugin *plugin.Plugin
	token  softhsm.Token
	faults *faultp11.Module
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{t: t, dir: shortDir(t)}
	token, err := softhsm.New(t.Context(), filepath.Join(v.dir, "softhsm"), "k8s", "")
	if err != nil {
		t.Fatal(err)
	}
	v.token = *token
	behind := filepath.Join(v.dir, "faulty")
	if err := os.Mkdir(behind, 0o755); err != nil { //nolint:gosec // a module must be readable
		t.Fatal(err)
	}
	if v.faults, err = faultp11.Install(behind, token.Module, faultp11.Options{SoftHSMConf: token.Conf()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.faults.Clear)
	v.token.Module = v.faults.Path()
	v.plugin, err = plugin.New(plugin.Options{Bin: program, Dir: filepath.Join(v.dir, "plugin"), Token: &v.token})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.plugin.CreateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.handOver()
	return v
}

// handOver makes everything the user's.
func (v *victim) handOver() {
	v.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	config := strings.Replace(read(v.t, v.plugin.Config()), "allowedUIDs: [0]", fmt.Sprintf("allowedUIDs: [%d]", nobody), 1)
	err := os.WriteFile(v.plugin.Config(), []byte(config), 0o600)
	err = errors.Join(err, filepath.WalkDir(v.dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}))
	if err != nil {
		v.t.Fatal(err)
	}
}

// start runs a program as the user, with these limits ("-c unlimited" as of ulimit), until the test ends.
func start(t *testing.T, dir, limits string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	return startAs(t, asUser(), dir, limits, env, args...)
}

// startAs is start with another user's rights.
func startAs(t *testing.T, as *syscall.SysProcAttr, dir, limits string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", "ulimit " + limits + ` && exec "$@"`, "sh"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stderr, cmd.Stdout = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.SysProcAttr = as
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(args, " "), cmd.Stderr)
		}
	})
	return cmd
}

func asUser() *syscall.SysProcAttr {
	if os.Geteuid() != 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// attack is what the attacker does, as a process of its own: the ways into another process's memory.
func attack(pid string) {
	runtime.LockOSThread() // ptrace belongs to the thread
	n, err := strconv.Atoi(pid)
	if err != nil {
		panic(err)
	}
	err = unix.PtraceAttach(n)
	fmt.Println("ptrace:", err)
	if err == nil {
		_, _ = unix.Wait4(n, nil, 0, nil)
		_ = unix.PtraceDetach(n)
	}
	for _, name := range []string{"mem", "environ", "fd/0"} {
		f, err := os.Open(filepath.Join("/proc", pid, name))
		if err == nil {
			_ = f.Close()
		} else {
			err = errors.Unwrap(err)
		}
		fmt.Println(name+":", err)
	}
	var here, there [1]byte
	remote := []unix.RemoteIovec{{Base: 0, Len: len(there)}} // an address that is not there: EFAULT for who may look
	local := []unix.Iovec{{Base: &here[0], Len: 1}}
	_, err = unix.ProcessVMReadv(n, local, remote, 0)
	fmt.Println("vm_readv:", err)
}

// attacked is what an attacker of the same uid says about the process.
func attacked(t *testing.T, dir string, pid int) string {
	t.Helper()
	attacker := filepath.Join(dir, "attacker") // a copy: the go command's folder is closed to other users
	if _, err := os.Stat(attacker); err != nil {
		binary, err := os.ReadFile("/proc/self/exe")
		if err == nil {
			err = os.WriteFile(attacker, binary, 0o755) //nolint:gosec // a program
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), attacker)
	cmd.Env = append(os.Environ(), fmt.Sprintf("HARDENING_ATTACK=%d", pid))
	cmd.SysProcAttr = asUser()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

const (
	allOpen   = "ptrace: <nil>\nmem: <nil>\nenviron: <nil>\nfd/0: <nil>\nvm_readv: bad address\n"
	allClosed = "ptrace: operation not permitted\nmem: permission denied\nenviron: permission denied\nfd/0: permission denied\nvm_readv: operation not permitted\n"
)

// Each command that logs in is stopped in C_Login, with the PIN in its memory. No process of its own user can look at it.
func TestNobodyPeeks(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	sleeper := start(t, v.dir, "-c 0", nil, "sleep", "1000")
	eventually(t, func() error { return execed(sleeper.Process.Pid, "sleep") })
	if got := attacked(t, v.dir, sleeper.Process.Pid); got != allOpen {
		notChecked(t, "this system lets nobody look at a process that is not hardened:\n%s", got)
	}
	for name, args := range map[string][]string{
		"serve":       {"serve"},
		"keys list":   {"keys", "list"},
		"keys rotate": {"keys", "rotate"},
		"doctor":      {"doctor"},
		"etcd verify": {"etcd", "verify", "--snapshot", "none"},
	} {
		t.Run(name, func(t *testing.T) { // one after the other: they share the faulty module
			if err := os.RemoveAll(filepath.Join(v.dir, "plugin/state")); err != nil { // a login cut short is remembered there
				t.Fatal(err)
			}
			before := v.faults.Calls("C_Login")
			v.faults.Hang("C_Login")
			defer v.faults.Clear()
			cmd := start(t, v.dir, "-c unlimited", v.token.Env(), append([]string{program, "--config", v.plugin.Config()}, args...)...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := v.faults.WaitCalls(ctx, "C_Login", before+1); err != nil {
				t.Fatal(err)
			}
			if got := attacked(t, v.dir, cmd.Process.Pid); got != allClosed {
				t.Errorf("an attacker got:\n%s", got)
			}
			limits := strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))), " ")
			if !strings.Contains(limits, "Max core file size 0 0") {
				t.Errorf("limits: %s", limits)
			}
			_ = cmd.Process.Kill()
			v.faults.Clear()
			_ = cmd.Wait() // killed
		})
	}
}

// execed reports whether the shell has become the program.
func execed(pid int, program string) error {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err == nil && strings.TrimSpace(string(comm)) != program {
		err = fmt.Errorf("it is still %s", comm)
	}
	return err
}

// A crash leaves no core file, however the process was started.
func TestNoCore(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	control := start(t, v.dir, "-c unlimited", nil, "/bin/sh", "-c", "kill -ABRT $$")
	if err := control.Wait(); !dumped(err) {
		notChecked(t, "this system makes no core files: %v", err)
	}
	cmd := start(t, v.dir, "-c unlimited", append(v.token.Env(), "GOTRACEBACK=crash"), program, "serve", "--config", v.plugin.Config())
	eventually(t, func() error { _, err := os.Stat(v.plugin.Socket()); return err })
	if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGABRT {
		t.Fatalf("it ended with %v; want a crash", err)
	}
	if dumped(err) {
		t.Error("a core file was written")
	}
}

func dumped(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.Sys().(syscall.WaitStatus).CoreDump()
}

// Memory is locked where nothing limits it, and never under a limit, which would end the process sooner or later.
func TestMemoryIsLockedWhereAllowed(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		limits, says string
		capable      bool // of CAP_IPC_LOCK, as systemd's AmbientCapabilities gives it
		locked       bool
	}{
		"a limit":                  {limits: "-l 8192", says: "RLIMIT_MEMLOCK is not unlimited"}, // not even tried: it may succeed, and end the process later
		"a limit and CAP_IPC_LOCK": {limits: "-l 8192", says: "memory is locked", capable: true, locked: true},
		"no limit":                 {limits: "-l unlimited", says: "memory is locked", locked: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVictim(t)
			if err := exec.CommandContext(t.Context(), "/bin/sh", "-c", "ulimit "+tt.limits).Run(); err != nil {
				t.Skipf("NOT CHECKED: ulimit %s is not allowed to this user here", tt.limits)
			}
			as := asUser()
			if tt.capable {
				if as == nil {
					t.Skip("NOT CHECKED: only root may give CAP_IPC_LOCK")
				}
				as.AmbientCaps = []uintptr{unix.CAP_IPC_LOCK}
			}
			cmd := startAs(t, as, v.dir, tt.limits, v.token.Env(), program, "serve", "--config", v.plugin.Config())
			eventually(t, func() error { _, err := os.Stat(v.plugin.Socket()); return err })
			status := strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))), " ")
			if nothing := strings.Contains(status, "VmLck: 0 kB"); nothing == tt.locked {
				t.Errorf("locked is %t, want %t: %s", !nothing, tt.locked, status)
			}
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if out := cmd.Stderr.(*bytes.Buffer).String(); strings.Count(out, tt.says) != 1 {
				t.Errorf("no line, or more than one, with %q", tt.says)
			}
		})
	}
}
