// Package kubebin finds the kube-apiserver and etcd that the tests and the demo run, or builds them from their Go
// modules (test/tools/kube) into a cache, likewise what a whole control-plane node needs (Node), and the kube-apiserver of
// older releases (Release; their modules are the folders of test/tools/kube). It finds and
// builds them; test/kube and test/cluster run them.
//
// Search order: $KUBEBUILDER_ASSETS, PATH, the cache. The cache is
// ${XDG_CACHE_HOME:-$HOME/.cache}/hsm-kms/<kubernetes version>/bin; it appears there by a rename, so that it is
// whole or absent, and a file lock keeps two builds from running at once.
package kubebin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// oldest is the first minor release (1.x) with KMS v2 as a stable feature.
const oldest = 29

// needed are the programs that every folder must hold; etcdctl and etcdutl are built too, but nobody's own folder
// needs them.
var needed = [...]string{"kube-apiserver", "etcd"}

// Set is a folder with kube-apiserver and etcd.
type Set struct {
	Dir    string // absolute
	Source string // where it was found, in words for a person
}

// Path gives the path of one program of the set.
func (s Set) Path(name string) string { return filepath.Join(s.Dir, name) }

// Find gives the programs, building them if nobody has them yet: 13 CPU minutes, with a line about the progress to
// log every few seconds. It ends with the context. A $KUBEBUILDER_ASSETS that is set and not usable is an error,
// because the one who set it would not accept another one in silence; an unusable one in PATH is passed over with a line.
func Find(ctx context.Context, log io.Writer) (Set, error) {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		abs, err := filepath.Abs(dir)
		if err == nil {
			err = check(ctx, abs)
		}
		if err != nil {
			return Set{}, fmt.Errorf("using KUBEBUILDER_ASSETS=%s: %w (unset it to have them found or built)", dir, err)
		}
		return Set{Dir: abs, Source: "KUBEBUILDER_ASSETS"}, nil
	}
	if path, err := exec.LookPath(needed[0]); err == nil {
		dir, err := filepath.Abs(filepath.Dir(path))
		if err == nil {
			err = check(ctx, dir)
		}
		if err == nil {
			return Set{Dir: dir, Source: "PATH"}, nil
		}
		fmt.Fprintf(log, "passing over %s: %v\n", path, err)
	}
	return cached(ctx, log)
}

// NodeSet is what runs on a control-plane node, all of one release and built here.
type NodeSet struct {
	Server  Set    // kube-apiserver, etcd, etcdctl, etcdutl
	Node    Set    // kubelet, kubeadm, kubectl, kube-controller-manager, kube-scheduler
	Version string // of Kubernetes, such as v1.37.2
}

// Node gives the programs of a control-plane node, building what the cache lacks: 5 CPU minutes more than Find. With
// onlyCached, what is not there of a node is ErrNotCached. A user's own kube-apiserver is not used, because all must be of one
// release.
func Node(ctx context.Context, log io.Writer, onlyCached bool) (NodeSet, error) {
	source, version, err := sources(ctx, "")
	if err != nil {
		return NodeSet{}, err
	}
	server, err := cached(ctx, log)
	if err != nil {
		return NodeSet{}, err
	}
	b := builder{source: source, version: version, programs: nodePrograms(), effort: "about 5 CPU minutes", log: log}
	key, err := b.key()
	if err != nil {
		return NodeSet{}, err
	}
	node, err := b.get(ctx, "node-"+key, onlyCached)
	return NodeSet{Server: server, Node: node, Version: version}, err
}

// ErrNotCached says that the programs of a release are not built yet.
var ErrNotCached = errors.New("not built yet")

// Releases are the releases of Kubernetes (1.30) that Release knows, oldest first. The last one is what Find builds.
func Releases(ctx context.Context) ([]string, error) {
	source, version, err := sources(ctx, "")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return nil, fmt.Errorf("listing the releases of Kubernetes: %w", err)
	}
	var releases []string
	for _, entry := range entries {
		if entry.IsDir() {
			releases = append(releases, entry.Name())
		}
	}
	return append(releases, minor(version)), nil
}

// minor is the release of a version: 1.37 of v1.37.2.
func minor(version string) string {
	return strings.TrimPrefix(version[:strings.LastIndex(version, ".")], "v")
}

// Release gives the kube-apiserver of a release (1.31), with the etcd of Find beside it. What the cache lacks is built, 4
// CPU minutes, or is ErrNotCached with onlyCached.
func Release(ctx context.Context, log io.Writer, release string, onlyCached bool) (Set, error) {
	releases, err := Releases(ctx)
	if err != nil {
		return Set{}, err
	}
	if !slices.Contains(releases, release) {
		return Set{}, fmt.Errorf("there is no release %q: %s are known", release, strings.Join(releases, ", "))
	}
	newest, err := newest(ctx, log)
	if err != nil {
		return Set{}, err
	}
	set, err := newest.get(ctx, "bin", onlyCached)
	if err != nil || release == releases[len(releases)-1] {
		return set, err
	}
	source, version, err := sources(ctx, release)
	if err != nil {
		return Set{}, err
	}
	b := builder{source: source, version: version, programs: apiServer(), beside: &set, effort: "about 4 CPU minutes", log: log}
	key, err := b.key()
	if err != nil {
		return Set{}, err
	}
	return b.get(ctx, "apiserver-"+key, onlyCached)
}

// newest builds the kube-apiserver and etcd of the newest release.
func newest(ctx context.Context, log io.Writer) (builder, error) {
	source, version, err := sources(ctx, "")
	return builder{source: source, version: version, programs: serverPrograms(), effort: "about 13 CPU minutes", log: log}, err
}

// cached gives the cache's kube-apiserver and etcd, built first if need be.
func cached(ctx context.Context, log io.Writer) (Set, error) {
	b, err := newest(ctx, log)
	if err != nil {
		return Set{}, err
	}
	return build(ctx, b, "bin")
}

// complete says what a folder lacks.
func complete(dir string) error {
	for _, name := range needed {
		if err := isProgram(dir, name); err != nil {
			return err
		}
	}
	return nil
}

func isProgram(dir, name string) error {
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s in %s is not a program", name, dir)
	}
	return nil
}

// versionLine is what `kube-apiserver --version` prints: "Kubernetes v1.37.2".
var versionLine = regexp.MustCompile(`v1\.(\d+)\.`)

// check says why a folder that we did not build cannot be used.
func check(ctx context.Context, dir string) error {
	if err := complete(dir); err != nil {
		return err
	}
	out, err := proc.Command(ctx, filepath.Join(dir, needed[0]), "--version").Output()
	if err != nil {
		return fmt.Errorf("asking kube-apiserver for its version: %w", err)
	}
	match := versionLine.FindSubmatch(out)
	if match == nil {
		return fmt.Errorf("kube-apiserver says %q, which holds no version 1.x", strings.TrimSpace(string(out)))
	}
	if minor, err := strconv.Atoi(string(match[1])); err != nil || minor < oldest {
		return fmt.Errorf("kube-apiserver is 1.%s; KMS v2 is stable from 1.%d on", match[1], oldest)
	}
	return nil
}

// CacheRoot is the folder below the user's cache folder in which the tests keep what is costly to make; the same on all
// systems, so that the documents can name it.
func CacheRoot() (string, error) {
	if dir := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "hsm-kms"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder: %w (set XDG_CACHE_HOME)", err)
	}
	return filepath.Join(home, ".cache", "hsm-kms"), nil
}

// sources finds the module test/tools/kube, or that of an older release below it, and the Kubernetes version that it asks for.
func sources(ctx context.Context, release string) (dir, version string, err error) {
	const module = "github.com/hsm-kms/hsm-kms"
	out, err := proc.Command(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", "", fmt.Errorf("looking for the source folder of hsm-kms: %w (run it inside a clone, with Go in PATH)", err)
	}
	dir = filepath.Join(strings.TrimSpace(string(out)), "test", "tools", "kube", release)
	data, err := os.ReadFile(filepath.Join(dir, "go.mod")) //nolint:gosec // our own source
	if err != nil {
		return "", "", fmt.Errorf("reading the module of the tools: %w", err)
	}
	match := regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v[0-9.]+)`).FindSubmatch(data)
	if match == nil {
		return "", "", fmt.Errorf("%s/go.mod requires no k8s.io/kubernetes", dir)
	}
	return dir, string(match[1]), nil
}
