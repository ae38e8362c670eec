package kubebin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

// get gives the folder of that name, built first if need be and not onlyCached.
func (b builder) get(ctx context.Context, name string, onlyCached bool) (Set, error) {
	set, err := b.place(name)
	if err == nil && onlyCached && !b.complete(set.Dir) {
		err = ErrNotCached
	}
	if err != nil {
		return Set{}, err
	}
	return build(ctx, b, name)
}

// key identifies what is built: the modules with their checksums, the programs and how they are linked.
func (b builder) key() (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(b.source, name))
		if err != nil {
			return "", fmt.Errorf("reading the module of the tools: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n%s\n", name, len(data), data)
	}
	fmt.Fprintln(h, b.names(), b.ldflags(), runtime.GOARCH)
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// place is the folder of that name in the cache of b's release, whether or not it is there.
func (b builder) place(name string) (Set, error) {
	root, err := CacheRoot()
	if err != nil {
		return Set{}, err
	}
	return Set{Dir: filepath.Join(root, b.version, name), Source: "built from source, cached"}, nil
}

// build gives the folder of that name in the cache of b's release, filled first if need be.
func build(ctx context.Context, b builder, name string) (Set, error) {
	set, err := b.place(name)
	if err != nil || b.complete(set.Dir) {
		return set, err
	}
	parent := filepath.Dir(set.Dir)
	if err := os.MkdirAll(parent, 0o755); err != nil { //nolint:gosec // programs, nothing secret
		return Set{}, fmt.Errorf("making the cache folder: %w (set XDG_CACHE_HOME to a folder that can be written)", err)
	}
	unlock, err := lock(ctx, filepath.Join(parent, "lock"), b.log)
	if err != nil {
		return Set{}, err
	}
	defer unlock()
	if b.complete(set.Dir) { // somebody else built it while we waited
		return set, nil
	}
	if err := fill(ctx, b, set.Dir); err != nil {
		return Set{}, err
	}
	return set, nil
}

// complete reports whether a folder of the cache has all programs.
func (b builder) complete(dir string) bool {
	names := b.linked()
	for _, p := range b.programs {
		names = append(names, p.name)
	}
	return !slices.ContainsFunc(names, func(name string) bool { return isProgram(dir, name) != nil })
}

// linked are the programs that b takes from the folder beside it.
func (b builder) linked() []string {
	if b.beside == nil {
		return nil
	}
	return []string{"etcd", "etcdctl", "etcdutl"}
}

// fill builds into a temporary folder beside dir and renames it to dir. Under the lock.
func fill(ctx context.Context, b builder, dir string) error {
	// Left-overs of a build that was killed; nobody else works here while we hold the lock.
	old, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "building-*"))
	if err != nil {
		return fmt.Errorf("looking for left-over builds: %w", err)
	}
	for _, path := range append(old, dir) {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("removing an incomplete build: %w", err)
		}
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "building-")
	if err != nil {
		return fmt.Errorf("making a folder for the build: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil { //nolint:gosec // programs, nothing secret
		return fmt.Errorf("opening the build folder to its readers: %w", err)
	}
	if err := b.build(ctx, temp); err != nil {
		return fmt.Errorf("building %s %s: %w", b.names(), b.version, err)
	}
	for _, name := range b.linked() {
		if err := os.Symlink(b.beside.Path(name), filepath.Join(temp, name)); err != nil {
			return fmt.Errorf("linking %s: %w", name, err)
		}
	}
	if err := os.Rename(temp, dir); err != nil {
		return fmt.Errorf("putting the build in its place: %w", err)
	}
	return nil
}
