//go:build e2e

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	roleInit   = "init"   // first process of a node
	roleSwitch = "switch" // holder of the network that the nodes are connected by
	roleEnv    = "HSM_KMS_CLUSTER_ROLE"
)

// patience bounds every wait. Everything is much faster, but a busy machine is no finding.
const patience = 4 * time.Minute

// machine holds what all nodes of a run share. Tests use it at once.
type machine struct {
	dir     string // everything of this run; goes at its end
	lock    *os.File
	network *child // the switch

	mutex    sync.Mutex
	children []*child
	closed   bool // no more children
}

// child is a copy of this program in namespaces of its own. The kernel kills it when we end.
type child struct {
	pid   int
	done  chan struct{} // closed when it has ended
	begun *os.File      // writing end of its fd 3
}

// spawn starts a child; it waits for its input.
func (m *machine) spawn(role, console string, flags uintptr) (*child, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.closed {
		return nil, errors.New("this run is being ended")
	}
	c, err := start(role, console, flags)
	if err == nil {
		m.children = append(m.children, c)
	}
	return c, err
}

func start(role, console string, flags uintptr) (*child, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	out, err := os.OpenFile(console, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	defer out.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{read}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true, Cloneflags: flags}
	c := &child{done: make(chan struct{}), begun: write}
	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the thread that forked ends.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // a node ends by a signal, whatever it did
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("starting a process in namespaces of its own: %w", err), write.Close())
	}
	c.pid = cmd.Process.Pid
	return c, nil
}

// begin lets the child begin with its input.
func (c *child) begin(input any) error {
	return errors.Join(json.NewEncoder(c.begun).Encode(input), c.begun.Close())
}

func (c *child) kill() {
	select {
	case <-c.done: // its number may be another process's by now
	default:
		_ = syscall.Kill(c.pid, syscall.SIGKILL)
	}
	<-c.done
}

// newMachine makes the run's folder and the network, and removes what a killed run left.
func newMachine() (*machine, error) {
	base := filepath.Join(os.TempDir(), "hsm-kms-cluster")
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, err
	}
	if err := removeLeft(base); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(base, "run-")
	if err != nil {
		return nil, err
	}
	m := &machine{dir: dir}
	if m.lock, err = hold(dir); err != nil {
		return nil, errors.Join(err, m.close())
	}
	if m.network, err = m.spawn(roleSwitch, filepath.Join(dir, "switch.log"), syscall.CLONE_NEWNET); err != nil {
		return nil, errors.Join(err, m.close())
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"link", "add", "br0", "type", "bridge"}, {"addr", "add", "10.99.0.1/24", "dev", "br0"}, {"link", "set", "br0", "up"},
	} {
		if err := ip(append([]string{"netns", strconv.Itoa(m.network.pid)}, args...)...); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, nil
}

// ip runs ip(8); with "netns PID" before the rest, in the network of that process.
func ip(args ...string) error {
	cmd := exec.Command("ip", args...)
	if args[0] == "netns" {
		cmd = exec.Command("nsenter", append([]string{"-t", args[1], "-n", "ip"}, args[2:]...)...)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// hold locks the folder of a run, for as long as this process lives.
func hold(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeLeft removes folders and cgroups of runs that were killed. The lock of a run that lives cannot be had.
func removeLeft(base string) error {
	left, err := filepath.Glob(filepath.Join(base, "run-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if f, err := hold(dir); err == nil {
			if err := errors.Join(removeCgroups(filepath.Base(dir)), os.RemoveAll(dir), f.Close()); err != nil {
				return fmt.Errorf("removing what an earlier run left: %w", err)
			}
		}
	}
	return nil
}

// close ends everything of this run, also while tests still use it, and removes it.
func (m *machine) close() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.closed = true
	for _, c := range m.children {
		c.kill()
	}
	if os.Getenv("HSM_KMS_CLUSTER_KEEP") != "" {
		fmt.Fprintln(os.Stderr, "kept:", m.dir)
		return removeCgroups(filepath.Base(m.dir))
	}
	return errors.Join(removeCgroups(filepath.Base(m.dir)), os.RemoveAll(m.dir))
}

// hierarchy is a cgroup v1 hierarchy, or the unified one that has no controllers then, with our own place in it.
type hierarchy struct {
	controller string // "": none of them, a named or the unified hierarchy
	path       string
}

// hierarchies are where we are ourselves: nodes begin below, so that they count where we count.
func hierarchies() ([]hierarchy, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for line := range strings.Lines(string(data)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			return nil, fmt.Errorf("/proc/self/cgroup has a line %q", line)
		}
		h := hierarchy{controller: part[1]}
		folder := part[1]
		switch part[1] {
		case "":
			folder = "unified"
		case "name=systemd":
			h.controller, folder = "", "systemd"
		}
		h.path = filepath.Join("/sys/fs/cgroup", folder, part[2])
		if _, err := os.Stat(h.path); err != nil {
			return nil, fmt.Errorf("looking for this machine's cgroup v1 hierarchy %q: %w", part[1], err)
		}
		all = append(all, h)
	}
	if !slices.ContainsFunc(all, func(h hierarchy) bool { return h.controller == "memory" }) {
		return nil, errors.New("this machine has no cgroup v1 controllers")
	}
	return all, nil
}

// joinCgroups makes a node's cgroups and puts its first process there; it returns the controllers.
func joinCgroups(name string, pid int) ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var controllers []string
	for _, h := range all {
		path := filepath.Join(h.path, name)
		if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // a cgroup
			return nil, err
		}
		if h.controller != "" {
			controllers = append(controllers, h.controller)
		}
		if h.controller == "cpuset" {
			if err := errors.Join(inheritCPUs(filepath.Dir(path)), inheritCPUs(path)); err != nil {
				return nil, err
			}
		}
		if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
			return nil, fmt.Errorf("putting a node into its cgroup: %w", err)
		}
	}
	return controllers, nil
}

// inheritCPUs gives a new cpuset what its parent has: it is empty at first, and nothing can run in it.
func inheritCPUs(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), bytes.TrimSpace(value), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the cgroups of a run, or of a node of it. The kernel lets go of them a moment after the last process.
func removeCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for _, h := range all {
		for {
			err := removeTree(filepath.Join(h.path, name))
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("removing a cgroup: %w", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// removeTree removes a cgroup with all below it: folders only, the files in them are the kernel's.
func removeTree(dir string) error {
	var folders []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			folders = append(folders, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, folder := range slices.Backward(folders) {
		if err := syscall.Rmdir(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// await calls done until it is true, and fails the test when that takes too long.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting until %s: %v", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
