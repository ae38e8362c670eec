package kubebin

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// programsIn makes a folder with a kube-apiserver that says it is of that version, and an etcd.
func programsIn(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"kube-apiserver": "#!/bin/sh\necho Kubernetes " + version + "\n", "etcd": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
	}
	return dir
}

// cacheWith makes a cache that is complete, so that nothing is built.
func cacheWith(t *testing.T) (root, bin string) {
	t.Helper()
	_, version, err := sources(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	bin = filepath.Join(root, "hsm-kms", version, "bin")
	if err := os.CopyFS(bin, os.DirFS(programsIn(t, version))); err != nil {
		t.Fatal(err)
	}
	for _, p := range serverPrograms() {
		if err := os.WriteFile(filepath.Join(bin, p.name), nil, 0o755); err != nil { //nolint:gosec // programs
			t.Fatal(err)
		}
	}
	return root, bin
}

// onlyGo makes a folder for PATH with go and nothing else.
func onlyGo(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(program, filepath.Join(dir, "go")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSearchOrder(t *testing.T) {
	root, cache := cacheWith(t)
	t.Setenv("XDG_CACHE_HOME", root)
	path := onlyGo(t) // the machine may have a kube-apiserver in its PATH
	assets, inPath, old := programsIn(t, "v1.35.0"), programsIn(t, "v1.34.0"), programsIn(t, "v1.28.9")
	tests := []struct{ name, assets, path, want, err string }{
		{name: "assets first", assets: assets, path: inPath, want: assets},
		{name: "PATH next", path: inPath, want: inPath},
		{name: "then the cache", want: cache},
		{name: "too old in PATH is passed over", path: old, want: cache},
		{name: "too old assets are an error", assets: old, err: "stable from 1.29"},
		{name: "missing assets are an error", assets: "/nonexistent", err: "unset it"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("KUBEBUILDER_ASSETS", test.assets)
			t.Setenv("PATH", test.path+string(os.PathListSeparator)+path)
			set, err := Find(t.Context(), t.Output())
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("err = %v, want %q in it", err, test.err)
				}
				return
			}
			if err != nil || set.Dir != test.want {
				t.Errorf("found %q, %v; want %q", set.Dir, err, test.want)
			}
		})
	}
}

// cancelOn is a log that cancels at its first line, as a Ctrl-C just after the build began does.
type cancelOn struct{ cancel context.CancelFunc }

func (c cancelOn) Write(p []byte) (int, error) {
	c.cancel()
	return len(p), nil
}

func TestInterruptedBuildLeavesNothing(t *testing.T) {
	root := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	source, version, err := sources(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(root, "building-left-over")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	err = fill(ctx, builder{source: source, version: version, programs: serverPrograms(), log: cancelOn{cancel}}, filepath.Join(root, "bin"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want canceled", err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestLockKeepsOthersOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	synctest.Test(t, func(t *testing.T) {
		unlock, err := lock(t.Context(), path, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := lock(ctx, path, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("second lock: %v, want it to wait for the first", err)
		}
		unlock()
		again, err := lock(t.Context(), path, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		again()
	})
}

func TestKeyChangesWithModulesAndPrograms(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func(b builder) string {
		t.Helper()
		k, err := b.key()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	b := builder{source: dir, version: "v1.37.2", programs: nodePrograms()}
	first := key(b)
	if again := key(b); again != first {
		t.Errorf("the key of equal contents changes: %s, %s", first, again)
	}
	fewer := b
	fewer.programs = fewer.programs[1:]
	if key(fewer) == first {
		t.Error("fewer programs have the same key")
	}
	if err := os.WriteFile(filepath.Join(dir, "go.sum"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if key(b) == first {
		t.Error("other checksums have the same key")
	}
}

// An older release has a folder of its own, with the newest etcd beside its kube-apiserver, and is not built when only what is cached
// is asked for.
func TestRelease(t *testing.T) {
	root, newest := cacheWith(t)
	t.Setenv("XDG_CACHE_HOME", root)
	releases, err := Releases(t.Context())
	if err != nil || len(releases) != 8 || releases[0] != "1.30" || releases[7] != "1.37" {
		t.Fatalf("releases %q, %v", releases, err)
	}
	if set, err := Release(t.Context(), t.Output(), "1.37", true); err != nil || set.Dir != newest {
		t.Errorf("the newest is %q, %v; want %q", set.Dir, err, newest)
	}
	if _, err := Release(t.Context(), t.Output(), "1.31", true); !errors.Is(err, ErrNotCached) {
		t.Errorf("a release that is not built: %v", err)
	}
	if _, err := Release(t.Context(), t.Output(), "1.29", true); err == nil || !strings.Contains(err.Error(), "1.30, 1.31") {
		t.Errorf("a release that is not known: %v", err)
	}

	source, version, err := sources(t.Context(), "1.31")
	if err != nil || !strings.HasPrefix(version, "v1.31.") {
		t.Fatalf("%s, %v", version, err)
	}
	b := builder{source: source, version: version, programs: apiServer(), beside: &Set{Dir: newest}}
	key, err := b.key()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "hsm-kms", version, "apiserver-"+key)
	if err := os.CopyFS(dir, os.DirFS(programsIn(t, version))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	if _, err := Release(t.Context(), t.Output(), "1.31", true); !errors.Is(err, ErrNotCached) {
		t.Errorf("a release without etcd: %v", err)
	}
	for _, name := range b.linked() {
		if err := os.Symlink(b.beside.Path(name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if set, err := Release(t.Context(), t.Output(), "1.31", true); err != nil || set.Dir != dir {
		t.Errorf("found %q, %v; want %q", set.Dir, err, dir)
	}
}
