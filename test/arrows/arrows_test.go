// Package arrows holds the repository to its layout: which package may import which, and which folders there are.
// Tests of a package may import what they like.
package arrows

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hsm-kms/hsm-kms"

// listed is a package as go list tells of it.
type listed struct {
	ImportPath string
	Deps       []string // all it needs, directly or not
	Imports    []string
	CgoFiles   []string
	GoFiles    []string
}

// list returns the packages of the module below the folders given, without their tests.
func list(t *testing.T, env ...string) map[string]listed {
	t.Helper()
	dependOnSources(t)
	cmd := exec.Command("go", "list", "-json=ImportPath,Deps,Imports,CgoFiles,GoFiles", module+"/...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]listed{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages[strings.TrimPrefix(p.ImportPath, module+"/")] = p
	}
}

// dependOnSources looks at every source file. go test keeps a result until a file that the test itself looked at changes;
// what go list looks at does not count.
func dependOnSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			_, _ = os.Stat(path) // gone already: somebody works here
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// within reports whether an import path is one of roots or below it.
func within(path string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return path == root || strings.HasPrefix(path, root+"/") })
}

// own turns folders of this module into import paths.
func own(folders ...string) []string {
	var paths []string
	for _, folder := range folders {
		paths = append(paths, module+"/"+folder)
	}
	return paths
}

func TestArrows(t *testing.T) {
	t.Parallel()
	packages := list(t)
	pkcs11 := []string{"github.com/miekg/pkcs11", "github.com/ThalesIgnite/crypto11"}
	parts := []string{"kmsplugin", "evidence", "hsm", "manifests"}
	others := func(part string) []string {
		return own(slices.DeleteFunc(slices.Clone(parts), func(other string) bool { return other == part })...)
	}
	for _, rule := range []struct {
		folder string
		never  []string
		why    string
	}{
		{"envelope", slices.Concat(own("cmd", "test"), own(parts...), pkcs11, []string{"runtime/cgo", "google.golang.org/grpc", "log", "k8s.io"}),
			"envelope knows no HSM, no gRPC and no logging"},
		{"kmsplugin", slices.Concat(others("kmsplugin"), own("cmd", "test"), pkcs11), "kmsplugin never sees PKCS#11"},
		{"evidence", slices.Concat(others("evidence"), own("cmd", "test"), pkcs11), "evidence never sees PKCS#11"},
		{"hsm", slices.Concat(others("hsm"), own("cmd", "test"), []string{"google.golang.org/grpc", "k8s.io"}), "hsm knows the token and no more"},
		{"manifests", slices.Concat(others("manifests"), own("cmd", "test"), pkcs11), "manifests are files"},
		{"cmd", own("test"), "what is for tests does not compile into the program"},
		{"internal", slices.Concat(own("cmd", "test", "envelope"), own(parts...)), "internal is below everything"},
	} {
		for name, p := range packages {
			if !within(name, rule.folder) {
				continue
			}
			for _, dep := range p.Deps {
				if within(dep, rule.never...) {
					t.Errorf("%s needs %s: %s", name, dep, rule.why)
				}
			}
		}
	}
}

// Only hsm has C in it.
func TestCgo(t *testing.T) {
	t.Parallel()
	for name, p := range list(t, "CGO_ENABLED=1") {
		if len(p.CgoFiles) > 0 && !within(name, "hsm", "test") {
			t.Errorf("%s uses cgo: %v", name, p.CgoFiles)
		}
	}
}

func TestFolders(t *testing.T) {
	t.Parallel()
	allowed := []string{"cmd", "kmsplugin", "envelope", "hsm", "evidence", "manifests", "test", "docs", "internal"}
	made := []string{"bin", "dist"} // by make; not in the repository
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() && !strings.HasPrefix(name, ".") && !slices.Contains(allowed, name) && !slices.Contains(made, name) {
			t.Errorf("folder %s is not part of the layout", name)
		}
	}
}
