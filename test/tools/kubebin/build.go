package kubebin

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// every is how often the progress of a build is told.
const every = 5 * time.Second

// builder compiles programs of the module in source.
type builder struct {
	source   string // folder of the module
	version  string // of Kubernetes, stamped into its programs
	programs []program
	beside   *Set   // whose etcd, etcdctl and etcdutl are linked into the folder; nil: none
	effort   string // what a person is told before it begins
	log      io.Writer
}

// program is the name of a file, and the package that it is compiled from.
type program struct{ name, pkg string }

// progress is the clock of one build: one ticker over all its commands, so that many short ones are not silent.
type progress struct {
	started time.Time
	tick    *time.Ticker
}

func (p progress) elapsed() time.Duration { return time.Since(p.started).Round(time.Second) }

// serverPrograms are what Find gives, in the order in which they are built.
func serverPrograms() []program {
	return []program{
		{"etcd", "go.etcd.io/etcd/server/v3"},
		{"etcdctl", "go.etcd.io/etcd/etcdctl/v3"},
		{"etcdutl", "go.etcd.io/etcd/etcdutl/v3"},
		{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	}
}

// apiServer is what Release builds of an older release.
func apiServer() []program {
	return []program{{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"}}
}

// nodePrograms are what a control-plane node has beside them.
func nodePrograms() []program {
	var programs []program
	for _, name := range []string{"kubelet", "kubeadm", "kube-controller-manager", "kube-scheduler", "kubectl"} {
		programs = append(programs, program{name, "k8s.io/kubernetes/cmd/" + name})
	}
	return programs
}

// names lists the programs for a person.
func (b builder) names() string {
	var names []string
	for _, p := range b.programs {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// build compiles all programs into dir. Its log file goes away with dir; what matters of it is in the error.
func (b builder) build(ctx context.Context, dir string) error {
	clock := progress{time.Now(), time.NewTicker(every)}
	defer clock.tick.Stop()
	fmt.Fprintf(b.log, "building %s for Kubernetes %s: once, %s\n", b.names(), b.version, b.effort)
	stale, err := b.stale(ctx, clock, filepath.Join(dir, "list.log"))
	if err != nil {
		return err
	}
	log := filepath.Join(dir, "build.log")
	for _, p := range b.programs {
		args := []string{"build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", b.ldflags(), "-o", filepath.Join(dir, p.name), p.pkg}
		tell := func() string {
			return fmt.Sprintf("%s: compiled %d of %d packages", p.name, min(packages(log), stale), stale)
		}
		if err := b.run(ctx, clock, log, args, tell); err != nil {
			return fmt.Errorf("compiling %s: %w", p.name, err)
		}
	}
	fmt.Fprintf(b.log, "[%s] built\n", clock.elapsed())
	for _, name := range []string{log, filepath.Join(dir, "list.log")} {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("removing the build's log: %w", err)
		}
	}
	return nil
}

// stale fetches the sources and counts the packages that are not in Go's build cache yet.
func (b builder) stale(ctx context.Context, clock progress, log string) (int, error) {
	args := []string{"list", "-trimpath", "-deps", "-f", "{{if .Stale}}stale {{.ImportPath}}{{end}}"}
	for _, p := range b.programs {
		args = append(args, p.pkg)
	}
	tell := func() string {
		data, _ := os.ReadFile(log) //nolint:gosec // for display only
		return fmt.Sprintf("fetching sources: %d modules", bytes.Count(data, []byte("go: downloading ")))
	}
	if err := b.run(ctx, clock, log, args, tell); err != nil {
		return 0, fmt.Errorf("fetching the sources: %w (is the Go module proxy reachable?)", err)
	}
	data, err := os.ReadFile(log) //nolint:gosec // our own
	if err != nil {
		return 0, fmt.Errorf("reading the list of packages: %w", err)
	}
	return bytes.Count(data, []byte("stale ")), nil
}

// packages counts what go build -v said that it compiled.
func packages(log string) int {
	data, _ := os.ReadFile(log) //nolint:gosec // for display only: no log, no progress
	count := 0
	for line := range bytes.Lines(data) {
		if !bytes.ContainsAny(bytes.TrimSpace(line), " :#") {
			count++
		}
	}
	return count
}

// run runs the go command, saying every few seconds how far it is.
func (b builder) run(ctx context.Context, clock progress, log string, args []string, tell func() string) error {
	// CGO_ENABLED=0 as the release builds of Kubernetes and etcd; GOFLAGS and GOWORK of the user's do not fit this module.
	p, err := proc.Start(proc.Spec{
		Name: "go " + args[0], Path: "go", Args: args, Dir: b.source, Log: log,
		Env: []string{"CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off"},
	})
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			p.Kill()
			return ctx.Err()
		case <-p.Done():
			if p.Err() != nil {
				return fmt.Errorf("%w\n%s", p.Err(), p.Tail(15))
			}
			return nil
		case <-clock.tick.C:
			fmt.Fprintf(b.log, "[%s] %s\n", clock.elapsed(), tell())
		}
	}
}

// ldflags stamps the release: an unstamped kube-apiserver takes itself for v0.0.0 and refuses its own features.
func (b builder) ldflags() string {
	flags := []string{"-s", "-w"}
	major, rest, _ := strings.Cut(strings.TrimPrefix(b.version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags, "-X "+pkg+".gitVersion="+b.version, "-X "+pkg+".gitMajor="+major, "-X "+pkg+".gitMinor="+minor)
	}
	return strings.Join(flags, " ")
}
