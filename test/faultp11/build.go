package faultp11

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

//go:embed module/*.c module/*.h module/*.def
var sources embed.FS

// Build compiles the module, if no earlier run did, and gives the path of the shared object. It is in a cache of the
// user's, named by a hash of all that it is made of; install copies of it (New does), never the file itself. It needs a
// C compiler ($CC, else cc) and the go command (for the folder that pkcs11.h is in).
func Build(tb testing.TB) string {
	tb.Helper()
	path, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// BuildGo compiles the module gomodule, which is written in Go, and gives the path of the shared object. Its environment
// names the real module: GOMODULE_REAL.
func BuildGo(tb testing.TB) string {
	tb.Helper()
	target := filepath.Join(tb.TempDir(), "gomodule.so")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", target, "./gomodule")
	cmd.Dir = ownFolder()
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("running %s: %v\n%s", cmd, err, out)
	}
	return target
}

// ownFolder is that of this package's sources; "": unknown, and the working directory must do.
func ownFolder() string {
	if _, self, _, ok := runtime.Caller(0); ok && filepath.IsAbs(self) {
		return filepath.Dir(self)
	}
	return ""
}

// build compiles at most once per process; processes that race each make the same file and rename it into place.
var build = sync.OnceValues(func() (string, error) {
	headers, err := headerFolder()
	if err != nil {
		return "", err
	}
	command := compiler(headers)
	key, err := sourceHash(command)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil { // no home: a folder for this process alone, since others may write to the temporary one
		if cache, err = os.MkdirTemp("", "faultp11-"); err != nil {
			return "", fmt.Errorf("building the faulty module: %w", err)
		}
	}
	target := filepath.Join(cache, "hsm-kms", "faultp11", key, "faultp11.so")
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	if err := compile(command, target); err != nil {
		return "", fmt.Errorf("building the faulty module: %w", err)
	}
	return target, nil
})

// headerFolder is where pkcs11.h is: in the folder of the module github.com/miekg/pkcs11. The go command runs in this
// package's own folder, for the test may have changed its working directory.
func headerFolder() (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11")
	cmd.Dir = ownFolder()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	if err == nil && dir == "" {
		err = errors.New("the module is not downloaded; run: go mod download github.com/miekg/pkcs11")
	}
	if err != nil {
		return "", fmt.Errorf("finding pkcs11.h with %s: %w %s", cmd, err, stderr.String())
	}
	return dir, nil
}

func compiler(headers string) []string {
	cc := strings.Fields(os.Getenv("CC"))
	if len(cc) == 0 {
		cc = []string{"cc"}
	}
	command := append(cc, "-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-D_GNU_SOURCE",
		"-Wall", "-Wextra", "-Werror", "-isystem", headers, "-pthread")
	if runtime.GOOS == "linux" {
		// nodelete: an abandoned call may still be inside when the last user closes the module.
		command = append(command, "-Wl,-z,nodelete", "-ldl")
	}
	return command
}

func sourceHash(command []string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.GOOS, runtime.GOARCH, command)
	err := fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := sources.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(data), data)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading the sources of the faulty module: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

func compile(command []string, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(target), "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, sources); err != nil {
		return err
	}
	objects, err := filepath.Glob(filepath.Join(work, "module", "*.c"))
	if err != nil {
		return err
	}
	out := filepath.Join(work, "faultp11.so")
	args := append(append(command[1:len(command):len(command)], "-o", out), objects...)
	if text, err := exec.Command(command[0], args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w\n%s", command[0], err, text)
	}
	return os.Rename(out, target)
}
