//go:build e2e

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// whereAble is the value of HSM_KMS_CLUSTER that skips the tests, loudly, on a machine that cannot carry nodes.
const whereAble = "where able"

// shared is what every test uses; nil in a run that is not switched on.
var shared *environment

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case roleInit:
		fmt.Fprintln(os.Stderr, becomeInit())
		os.Exit(1)
	case roleSwitch:
		_, _ = io.Copy(io.Discard, os.NewFile(3, "")) // until the run ends
		os.Exit(0)
	}
	if os.Getenv("HSM_KMS_CLUSTER") == "" {
		fmt.Println("NOT RUN: installations on real nodes; use make cluster")
		os.Exit(0)
	}
	os.Exit(run(m))
}

// run sets everything up, runs the tests, and clears up however they end.
func run(m *testing.M) int {
	err := able()
	if err == nil {
		err = intime(time.Now(), os.Getenv("HSM_KMS_DEADLINE"))
	}
	switch {
	case err != nil && os.Getenv("HSM_KMS_CLUSTER") == whereAble:
		fmt.Println("NOT RUN: installations on real nodes (systemd, kubelet, kubeadm):", err)
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "make cluster cannot run here:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if shared, err = newEnvironment(ctx); err != nil {
		if errors.Is(err, errPackages) && os.Getenv("HSM_KMS_CLUSTER") == whereAble && ctx.Err() == nil {
			fmt.Println("NOT RUN: installations on real nodes (systemd, kubelet, kubeadm):", err)
			return 0
		}
		fmt.Fprintln(os.Stderr, "make cluster:", err)
		return 2
	}
	code := make(chan int, 1)
	go func() { code <- m.Run() }()
	result := 0
	select {
	case result = <-code:
		report(result)
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr, "\nInterrupted; ending the nodes.")
		result = 130
	}
	if err := shared.machine.close(); err != nil {
		fmt.Fprintln(os.Stderr, "clearing up:", err)
		return 1
	}
	return result
}

// report prints what was otherwise than documented, and which blocks of the documents were not run.
func report(code int) {
	fmt.Println("\nOtherwise than documented, because of this machine:")
	for _, text := range shared.deviated {
		fmt.Println(" *", text)
	}
	if os.Getenv("HSM_KMS_CLUSTER_FULL") == "" {
		fmt.Println("NOT RUN: kubeadm join, three nodes, failover; use make cluster FULL=1")
	}
	fmt.Println("NOT RUN, because no test of it is written: kind and Docker themselves, the image of the rendered Dockerfile, cgroup v2")
	for name := range shared.blocks {
		if _, used := shared.used.Load(name); !used && code == 0 {
			fmt.Println("NOT RUN: block", name, "of the documents")
		}
	}
}

// able reports why this machine cannot carry nodes.
func able() error {
	if os.Geteuid() != 0 {
		return errors.New("nodes need root: they are made of namespaces, mounts and cgroups")
	}
	var missing []string
	for program, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "nsenter": "util-linux", "unshare": "util-linux", "ip": "iproute2"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program+" (package "+pkg+")")
		}
	}
	if missing != nil {
		return errors.New("missing programs: " + strings.Join(missing, ", "))
	}
	if err := tryNode(); err != nil {
		return err
	}
	return room()
}

// tryNode makes the parts of a node that a container or a hardened machine forbids, each once, and nothing outlives it.
func tryNode() error {
	all, err := hierarchies()
	if err != nil {
		return fmt.Errorf("%w; nodes take their cgroup v1 controllers from it, and cgroup v2 alone was not tried", err)
	}
	for _, h := range all {
		path := filepath.Join(h.path, fmt.Sprintf("hsm-kms-try-%d", os.Getpid()))
		if err := errors.Join(os.Mkdir(path, 0o755), os.Remove(path)); err != nil { //nolint:gosec // a cgroup
			return fmt.Errorf("no cgroup can be made: %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "hsm-kms-try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "sh", "-ec", `
mkdir upper work root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/usr,upperdir=$PWD/upper,workdir=$PWD/work" root
mount -t tmpfs tmpfs root
mkdir root/proc root/sys
mount -t proc proc root/proc
mount -t sysfs sysfs root/sys
mknod root/null c 1 3 && echo > root/null
ip link add a0 type veth peer name a1
ip link add br0 type bridge`)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("a node cannot be made of namespaces, mounts and links: %w: %s", err, out)
	}
	return nil
}

// A node with etcd, an API server and the rest of a control plane, and the images that it keeps unpacked.
const (
	needMemory = 4 << 30
	needDisk   = 8 << 30
)

// room reports whether there are memory and disk for a node.
func room() error {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	if m := regexp.MustCompile(`MemAvailable: +(\d+) kB`).FindSubmatch(data); m != nil {
		if kB, err := strconv.ParseInt(string(m[1]), 10, 64); err == nil && kB<<10 < needMemory {
			return fmt.Errorf("%d MiB of memory are available, and %d are needed", kB>>10, needMemory>>20)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(os.TempDir(), &st); err != nil {
		return fmt.Errorf("looking at the disk of %s: %w", os.TempDir(), err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < needDisk { //nolint:gosec // a size
		return fmt.Errorf("%d MiB are free in %s, and %d are needed", free>>20, os.TempDir(), needDisk>>20)
	}
	return nil
}

// takes is how long a run may take on two processors: the tests, and what has to be built or fetched first.
func takes() time.Duration {
	tests := 20 * time.Minute
	cache, err := kubebin.CacheRoot()
	if err != nil {
		return tests
	}
	for pattern, first := range map[string]time.Duration{"v*/node-*/kubectl": 9 * time.Minute, "cluster/node-*/bin": 3 * time.Minute} {
		if found, err := filepath.Glob(filepath.Join(cache, pattern)); err != nil || len(found) == 0 {
			tests += first
		}
	}
	return tests
}

// intime reports whether a run can end before the deadline, in seconds since 1970; "": there is none.
func intime(now time.Time, deadline string) error {
	if deadline == "" {
		return nil
	}
	seconds, err := strconv.ParseInt(deadline, 10, 64)
	if err != nil {
		return fmt.Errorf("HSM_KMS_DEADLINE: %w", err)
	}
	if left := time.Unix(seconds, 0).Sub(now); left < takes() {
		return fmt.Errorf("it may take %s, and %s are left for all tests", takes(), left.Round(time.Second))
	}
	return nil
}
