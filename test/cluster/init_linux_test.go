//go:build e2e

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// layout is what the first process of a node is told, as JSON on fd 3. The end of the input is the sign to go on: then
// its cgroups and its network are there.
type layout struct {
	Host    string            // host name
	Lower   string            // root file system, only read
	Dir     string            // of this node: upper, work, root, console, and the folders of Keep
	Keep    []string          // folders of the node that are no overlay, such as /var/lib/containerd
	Binds   map[string]string // folder of the node: folder of this machine, only read
	Shared  string            // folder of this machine that the node has as /opt/test
	Address string            // CIDR of eth0; "": none
	Gateway string
	Cgroups []string // v1 controllers
}

// inPlaceOfKernel are settings that kubelet and kubeadm want and that belong to the whole machine: the node sees files in
// their place.
var inPlaceOfKernel = map[string]string{
	"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// becomeInit builds the node around this process, and becomes its systemd. It returns only an error.
func becomeInit() error {
	// unshare acts on the thread, and exec takes over what the calling thread has.
	runtime.LockOSThread()
	input, err := io.ReadAll(os.NewFile(3, "layout"))
	if err != nil {
		return fmt.Errorf("reading the layout: %w", err)
	}
	var l layout
	if err := json.Unmarshal(input, &l); err != nil {
		return fmt.Errorf("reading the layout: %w", err)
	}
	for _, step := range []func() error{l.network, l.root, l.devices, l.cgroups, l.kernel, l.enter} {
		if err := step(); err != nil {
			return err
		}
	}
	return fmt.Errorf("starting systemd: %w", syscall.Exec("/lib/systemd/systemd",
		[]string{"systemd", "--show-status=1", "--log-target=console"},
		[]string{"container=hsm-kms-test", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}

func (l layout) network() error {
	commands := [][]string{{"link", "set", "lo", "up"}}
	if l.Address != "" {
		commands = append(commands, []string{"addr", "add", l.Address, "dev", "eth0"}, []string{"link", "set", "eth0", "up"},
			[]string{"route", "add", "default", "via", l.Gateway})
	}
	for _, args := range commands {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %q: %w: %s", args, err, out)
		}
	}
	return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600), unix.Sethostname([]byte(l.Host)))
}

// at is a path of the node before it is entered.
func (l layout) at(path string) string { return filepath.Join(l.Dir, "root", path) }

// mount makes the folder and mounts on it.
func (l layout) mount(source, path, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(l.at(path), 0o755); err != nil { //nolint:gosec // folders of a system
		return err
	}
	if err := unix.Mount(source, l.at(path), kind, flags, options); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", source, path, err)
	}
	return nil
}

func (l layout) bind(source, path string) error {
	return errors.Join(os.MkdirAll(source, 0o755), l.mount(source, path, "", unix.MS_BIND, "")) //nolint:gosec // folders of a system
}

func (l layout) root() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping the mounts of this node to itself: %w", err)
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(l.Dir, name), 0o755); err != nil { //nolint:gosec // folders of a system
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", l.Lower, filepath.Join(l.Dir, "upper"), filepath.Join(l.Dir, "work"))
	if err := l.mount("overlay", "/", "overlay", 0, layers); err != nil {
		return err
	}
	// An overlay cannot lie on an overlay, and etcd wants a file system that keeps what it flushed.
	for _, path := range l.Keep {
		if err := l.bind(filepath.Join(l.Dir, "keep", filepath.Base(path)), path); err != nil {
			return err
		}
	}
	for path, source := range l.Binds {
		if err := l.mount(source, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", l.at(path), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	return l.bind(l.Shared, "/opt/test")
}

func (l layout) devices() error {
	if err := errors.Join(l.mount("proc", "/proc", "proc", 0, ""), l.mount("sysfs", "/sys", "sysfs", 0, ""),
		l.mount("tmpfs", "/dev", "tmpfs", 0, "mode=755"), l.mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=620,gid=5"),
		l.mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"), l.mount("tmpfs", "/run", "tmpfs", 0, "mode=755"),
		os.Mkdir(l.at("/run/lock"), 0o755)); err != nil { //nolint:gosec // folders of a system
		return err
	}
	for name, number := range map[string][2]uint32{"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0}, "kmsg": {1, 11}} {
		path := l.at("/dev/" + name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(number[0], number[1]))); err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { //nolint:gosec // devices for everybody
			return err
		}
	}
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, l.at("/dev/"+name)); err != nil {
			return err
		}
	}
	return l.file(filepath.Join(l.Dir, "console"), "/dev/console")
}

// file shows a file of this machine in the node.
func (l layout) file(source, path string) error {
	if _, err := os.Stat(l.at(path)); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(l.at(path), nil, 0o600); err != nil {
			return err
		}
	}
	if err := unix.Mount(source, l.at(path), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("showing %s as %s: %w", source, path, err)
	}
	return nil
}

// cgroups gives the node the controllers, beginning at the cgroups that it was put into.
func (l layout) cgroups() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("getting a cgroup namespace: %w", err)
	}
	if err := l.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, controller := range l.Cgroups {
		if err := l.mount("cgroup", "/sys/fs/cgroup/"+controller, "cgroup", 0, controller); err != nil {
			return err
		}
	}
	return errors.Join(l.mount("cgroup", "/sys/fs/cgroup/systemd", "cgroup", 0, "none,name=systemd"),
		l.mount("cgroup2", "/sys/fs/cgroup/unified", "cgroup2", 0, ""))
}

// kernel keeps the node's hands off settings of the whole machine.
func (l layout) kernel() error {
	for name, value := range inPlaceOfKernel {
		source := filepath.Join(l.Dir, filepath.Base(name))
		if err := os.WriteFile(source, []byte(value+"\n"), 0o600); err != nil {
			return err
		}
		if err := l.file(source, "/proc/sys/"+name); err != nil {
			return err
		}
	}
	if err := l.mount(l.at("/proc/sys"), "/proc/sys", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("", l.at("/proc/sys"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// enter makes the node's root this process's.
func (l layout) enter() error {
	if err := os.Chdir(l.at("/")); err != nil {
		return err
	}
	if err := os.MkdirAll(".old", 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", ".old"); err != nil {
		return fmt.Errorf("entering the node: %w", err)
	}
	if err := errors.Join(os.Chdir("/"), unix.Unmount("/.old", unix.MNT_DETACH)); err != nil {
		return err
	}
	// systemd shows credentials to services through propagation: without it they are silently not there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	console, err := os.OpenFile("/dev/console", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	return errors.Join(unix.Dup2(int(null.Fd()), 0), unix.Dup2(int(console.Fd()), 1), unix.Dup2(int(console.Fd()), 2))
}
