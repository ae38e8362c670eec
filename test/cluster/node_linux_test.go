//go:build e2e

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// node is a machine as far as hsm-kms can see: its systemd, its network, its disk. It survives a reboot.
type node struct {
	env     *environment
	name    string
	dir     string
	address string // without the length of the prefix
	shared  string // folder of this machine; /opt/test there
	first   *child // its systemd; nil: off
}

// masked are units that would act on the real machine, or wait for hardware that a node does not have.
var masked = []string{
	"systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket", "systemd-udev-trigger.service",
	"systemd-sysctl.service", "systemd-modules-load.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
	"systemd-networkd.service", "systemd-timesyncd.service", "systemd-firstboot.service", "systemd-remount-fs.service",
	"console-getty.service", "getty.target", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
}

// newNode makes a node and boots it.
func newNode(t *testing.T, w *environment, name string, number int) *node {
	t.Helper()
	n := &node{env: w, name: name, dir: filepath.Join(w.machine.dir, name), address: fmt.Sprintf("10.99.0.%d", number+1)}
	n.shared = filepath.Join(n.dir, "shared")
	// The upper layer of the root file system, before it is one: what an administrator does before the first boot.
	files := map[string]string{
		"etc/hostname": name + "\n", "etc/machine-id": "uninitialized\n", "etc/fstab": "",
		"etc/hosts": "127.0.0.1 localhost\n10.99.0.2 node-1\n10.99.0.3 node-2\n10.99.0.4 node-3\n10.99.0.5 node-4\n10.99.0.6 node-5\n10.99.0.7 node-6\n10.99.0.8 node-7\n",
	}
	for path, content := range files {
		n.write(t, filepath.Join("upper", path), content, 0o644)
	}
	for _, unit := range masked {
		path := filepath.Join(n.dir, "upper/etc/systemd/system", unit)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink("/dev/null", path)); err != nil {
			t.Fatal(err)
		}
	}
	n.write(t, "shared/README", "The tests' folder of this node.\n", 0o644)
	t.Cleanup(n.off)
	n.boot(t)
	n.sh(t, "install -m 0755 /opt/hsm-kms/hsm-kms /usr/local/bin/hsm-kms")
	return n
}

// write makes a file of the node's folder on this machine.
func (n *node) write(t *testing.T, path, content string, perm os.FileMode) {
	t.Helper()
	path = filepath.Join(n.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), perm), os.Chmod(path, perm)); err != nil {
		t.Fatal(err)
	}
}

// boot starts the node and waits until its systemd has started everything.
func (n *node) boot(t *testing.T) {
	t.Helper()
	began := time.Now()
	console := filepath.Join(n.dir, "console")
	flags := syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
	first, err := n.env.machine.spawn(roleInit, console, uintptr(flags))
	if err != nil {
		t.Fatal(err)
	}
	n.first = first
	// A reboot leaves no cgroups. kubelet tries for 3 s to learn of each that has no container.
	group := filepath.Join(filepath.Base(n.env.machine.dir), n.name)
	if err := removeCgroups(group); err != nil {
		t.Fatal(err)
	}
	controllers, err := joinCgroups(group, first.pid)
	if err != nil {
		t.Fatal(err)
	}
	end := "p-" + n.name
	if err := errors.Join(
		ip("link", "add", "eth0", "netns", strconv.Itoa(first.pid), "type", "veth", "peer", "name", end, "netns", strconv.Itoa(n.env.machine.network.pid)),
		ip("netns", strconv.Itoa(n.env.machine.network.pid), "link", "set", end, "master", "br0", "up")); err != nil {
		t.Fatal(err)
	}
	if err := first.begin(layout{
		Host: n.name, Lower: n.env.root, Dir: n.dir, Keep: []string{"/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd"},
		Binds:  map[string]string{"/opt/kube": n.env.kube.Node.Dir, "/opt/kube-server": n.env.kube.Server.Dir, "/opt/hsm-kms": n.env.program, "/opt/images": n.env.images},
		Shared: n.shared, Address: n.address + "/24", Gateway: "10.99.0.1", Cgroups: controllers,
	}); err != nil {
		t.Fatal(err)
	}
	state := ""
	await(t, "systemd of "+n.name+" has started everything", func() bool {
		select {
		case <-first.done:
			t.Fatalf("%s does not boot; its console:\n%s", n.name, n.console())
		default:
		}
		out, _, _ := n.run(t.Context(), "systemctl is-system-running")
		state = strings.TrimSpace(out)
		return state == "running" || state == "degraded"
	})
	if state == "degraded" {
		t.Errorf("%s: units failed: %s", n.name, n.sh(t, "systemctl --failed --no-legend --plain"))
	}
	t.Logf("%s booted in %.1f s", n.name, time.Since(began).Seconds())
}

func (n *node) console() string {
	text, err := os.ReadFile(filepath.Join(n.dir, "console"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}

// off ends the node as a power failure does.
func (n *node) off() {
	if n.first != nil {
		n.first.kill()
		n.first = nil
	}
}

// reboot asks systemd for it, waits until the node is down and boots it.
func (n *node) reboot(t *testing.T) {
	t.Helper()
	began := time.Now()
	_, _, _ = n.run(t.Context(), "systemctl reboot") // it is cut off
	select {
	case <-n.first.done:
	case <-time.After(patience):
		t.Fatalf("%s does not go down; its console:\n%s", n.name, n.console())
	}
	t.Logf("%s went down in %.1f s", n.name, time.Since(began).Seconds())
	n.boot(t)
}

// prelude begins every script. "! COMMAND" does not end a script under set -e; "not COMMAND" does.
const prelude = "cd /root; set -euo pipefail\nnot() { if \"$@\"; then return 1; fi; }\n"

// run runs a script in the node, as root after a login, and returns what it printed and its exit code; the error is of
// running it at all.
func (n *node) run(ctx context.Context, script string) (out string, code int, err error) {
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(n.first.pid), "-m", "-p", "-n", "-u", "-i", "-C", "--root", "--wd",
		"env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb", "KUBECONFIG=/etc/kubernetes/admin.conf",
		"bash", "-c", prelude+script)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = 5 * time.Second // a service that was started by the script may keep the pipe
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return output.String(), exit.ExitCode(), nil
	}
	return output.String(), 0, err
}

// sh runs a script that must succeed, and returns what it printed.
func (n *node) sh(t *testing.T, script string) string {
	t.Helper()
	out, code := n.try(t, script)
	if code != 0 {
		t.Fatalf("%s: exit code %d:\n%s\nit printed:\n%s", n.name, code, script, out)
	}
	return out
}

// try runs a script that may fail.
func (n *node) try(t *testing.T, script string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, code, err := n.run(ctx, script)
	if err != nil {
		t.Fatalf("%s: %v: %s\nit printed:\n%s", n.name, err, script, out)
	}
	return out, code
}

// until repeats a script until it succeeds.
func (n *node) until(t *testing.T, what, script string) string {
	t.Helper()
	out := ""
	await(t, n.name+": "+what, func() bool {
		var code int
		out, code = n.try(t, script)
		return code == 0
	})
	return out
}

// document runs a block of commands of a document, after replacements of what this machine cannot be as described. Each
// of them must occur, and is told.
func (n *node) document(t *testing.T, name string, instead ...deviation) string {
	t.Helper()
	return n.sh(t, n.env.block(t, name, instead...))
}

// deviation is what a machine such as this one does otherwise than documented, and why.
type deviation struct{ text, instead, why string }

// block is a block of commands of a document: the one after the line <!-- node: NAME -->.
func (w *environment) block(t *testing.T, name string, instead ...deviation) string {
	t.Helper()
	script, ok := w.blocks[name]
	if !ok {
		t.Fatalf("no document has a block %q; there are %q", name, slices.Sorted(maps.Keys(w.blocks)))
	}
	for _, d := range instead {
		if !strings.Contains(script, d.text) {
			t.Fatalf("block %s has no %q to be replaced:\n%s", name, d.text, script)
		}
		script = strings.ReplaceAll(script, d.text, d.instead)
		w.deviates(fmt.Sprintf("docs, block %s: %q instead of %q: %s", name, d.instead, d.text, d.why))
	}
	w.used.Store(name, true)
	return script
}
