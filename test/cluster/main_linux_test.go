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
	"strings"
	"syscall"
	"testing"
)

// shared is what every test uses; nil in a run that is not switched on.
var shared *world

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case roleInit:
		fmt.Fprintln(os.Stderr, becomeInit())
		os.Exit(1)
	case roleSwitch:
		_, _ = io.Copy(io.Discard, os.NewFile(3, "")) // until the run ends
		os.Exit(0)
	}
	if os.Getenv("HSM_KMS_CLUSTER") != "1" {
		fmt.Println("NOT RUN: installations on real nodes; use make cluster")
		os.Exit(0)
	}
	os.Exit(run(m))
}

// run sets everything up, runs the tests, and clears up however they end.
func run(m *testing.M) int {
	if err := able(); err != nil {
		fmt.Fprintln(os.Stderr, "make cluster cannot run here:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	var err error
	if shared, err = newWorld(ctx); err != nil {
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
	fmt.Println("NOT RUN, because no test of it is written: kubeadm join, three nodes, failover, kind, the image of the rendered Dockerfile, cgroup v2")
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
	if out, err := exec.Command("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("no namespaces can be made: %w: %s", err, out)
	}
	if _, err := hierarchies(); err != nil {
		return fmt.Errorf("%w; nodes take their cgroup v1 controllers from it, and cgroup v2 alone was not tried", err)
	}
	return nil
}
