//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// operator is the person who follows the runbook on the first node: a shell in which hsm-kms finds the node's own
// configuration, etcd and the API servers. The module that its commands load can be held at any call; the plugin that
// runs on the node has one of its own.
type operator struct {
	*station
	book   *runbook
	faults *faultp11.Module
	config string // of the commands
	folder string // where the blocks are run
	kills  int
}

func newOperator(t *testing.T, p *plane, n *node, book *runbook) *operator {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	o := &operator{
		station: &station{alone: &alone{rig: &rig{dir: dir, plugin: n.plugin}, token: n.token}, http: n.http, bin: filepath.Join(dir, "bin")},
		book:    book, config: filepath.Join(dir, "config.yaml"), folder: dir,
		// A process that is killed in a call has not waited for it.
		faults: faultp11.New(t, n.token.Module, faultp11.Options{SoftHSMConf: n.token.Conf(), AllowBusyFinalize: true}),
	}
	text, err := os.ReadFile(n.plugin.Config())
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(n.token.Module), []byte(o.faults.Path()), 1)
	// ACTIVATE_IN and --settle shorten the waits, the ring is bound to no cluster, HOLE is an etcd that does not answer:
	// nothing else of a command is changed.
	script := fmt.Sprintf(`#!/bin/bash
args=("$@")
case "$1 $2" in
"keys rotate") for i in "${!args[@]}"; do
	if [[ ${args[i]} == --activate-in && -n $ACTIVATE_IN ]]; then args[i+1]=$ACTIVATE_IN; fi
done ;;
"etcd report" | "etcd verify") [[ " $* " == *" --snapshot "* ]] || args+=(--endpoints "${HOLE:-%[1]s}") ;;
"etcd migrate") mapfile -t servers < servers; args+=(--endpoints %[1]s --kubeconfig kubeconfig "${servers[@]}") ;;
"keys retire") args+=(--endpoints %[1]s --settle 1s --sole-cluster --yes) ;;
esac
[[ $1 == audit ]] || args+=(--config %[2]q)
exec %[3]q "${args[@]}"
`, strings.Join(p.etcd.URLs(), ","), o.config, bin.HSMKMS)
	err = errors.Join(os.WriteFile(o.config, text, 0o600), os.Mkdir(o.bin, 0o700),
		os.WriteFile(filepath.Join(o.bin, "hsm-kms"), []byte(script), 0o700), //nolint:gosec // a script
		os.Symlink(bin.Kube.Path("etcdctl"), filepath.Join(o.bin, "etcdctl")))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// knows writes down which API servers there are, and who may ask them.
func (o *operator) knows(t *testing.T, nodes []*node) {
	t.Helper()
	var servers strings.Builder
	var clusters []*kube.Cluster
	for _, n := range nodes {
		fmt.Fprintf(&servers, "--server=%s\n", n.cluster.URL())
		clusters = append(clusters, n.cluster)
	}
	err := errors.Join(
		os.WriteFile(filepath.Join(o.folder, "servers"), []byte(servers.String()), 0o600),
		clusters[0].WriteKubeconfig(filepath.Join(o.folder, "kubeconfig"), clusters[1:]...),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// do runs a block that must succeed and print the wanted texts.
func (o *operator) do(t *testing.T, block string, variables []string, wants ...string) {
	t.Helper()
	o.run(t, "cd "+o.folder+"\n"+block, variables, wants...)
}

// refused runs a block that must end with exit code 1 and print the wanted texts.
func (o *operator) refused(t *testing.T, block string, variables []string, wants ...string) {
	t.Helper()
	out, err := o.try(t, "cd "+o.folder+"\n"+block, variables...)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Fatalf("%s: %v, want exit code 1: %s", block, err, out)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%s does not print %q but: %s", block, want, out)
		}
	}
}

// killed runs a block and ends it with SIGKILL as soon as now says so; a block that has ended before fails the test.
func (o *operator) killed(t *testing.T, block string, variables []string, now func(context.Context) error) {
	t.Helper()
	o.kills++
	args := o.shell(block)
	p, err := proc.Start(proc.Spec{
		Name: "operator", Path: args[0], Args: args[1:], Dir: o.folder, Env: o.env(variables),
		Log: filepath.Join(o.folder, fmt.Sprintf("killed-%d.log", o.kills)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	go func() {
		select {
		case <-p.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	err = now(ctx)
	running := p.Running()
	p.Kill()
	if err != nil || !running {
		t.Fatalf("%s was not killed in its middle: %v\n%s", strings.TrimSpace(block), err, p.Tail(20))
	}
	t.Logf("killed in its middle: %s", strings.TrimSpace(block))
}

// in is true of a call that hangs in the commands' module: what follows is done while it does.
func (o *operator) hangs(function string) func(context.Context) error {
	return func(ctx context.Context) error { return o.faults.WaitHung(ctx, function, 1) }
}

// hole is an address at which somebody accepts connections and says nothing; entered waits for one.
func hole(t *testing.T) (url string, entered func(context.Context) error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	first := make(chan struct{})
	go func() {
		conn, err := lis.Accept()
		if err != nil {
			return // the test has ended
		}
		defer conn.Close()
		close(first)
		_, _ = conn.Read(make([]byte, 1)) // until the other end goes
		<-t.Context().Done()
	}()
	return "http://" + lis.Addr().String(), func(ctx context.Context) error {
		select {
		case <-first:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
