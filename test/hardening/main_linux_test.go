package hardening

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// program is the path of hsm-kms, built by TestMain, in a folder that every user may enter.
var program string

// TestMain builds the program. With HARDENING_ATTACK set, the test binary plays an attacker instead. In a short run there is
// no test: each runs the program for seconds.
func TestMain(m *testing.M) {
	if pid := os.Getenv("HARDENING_ATTACK"); pid != "" {
		attack(pid)
		return
	}
	flag.Parse()
	if testing.Short() {
		fmt.Println("make test runs them")
		return
	}
	os.Exit(withProgram(m))
}

func withProgram(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hardening-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // another uid runs what is in it
		panic(err)
	}
	program = filepath.Join(dir, "hsm-kms")
	cmd := exec.CommandContext(context.Background(), "go", "build", "-o", program, "./cmd/hsm-kms")
	cmd.Dir, cmd.Stdout, cmd.Stderr = "../..", os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		panic(err)
	}
	if os.Geteuid() == 0 { // so that a child may have as much of it as its test gives it; elsewhere it stays as it is
		_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	}
	return m.Run()
}

// TestDependsOnTheProgram looks at every source file of the program: go test keeps a result until a file changes that
// the test itself looked at, and what go build looks at does not count.
func TestDependsOnTheProgram(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"cmd", "kmsplugin", "envelope", "evidence", "hsm", "internal", "manifests"} {
		err := filepath.WalkDir(filepath.Join("../..", folder), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && !strings.HasSuffix(path, "_test.go") {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// shortDir is a folder for a plugin; its socket's path must fit in 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hard-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// notChecked skips a test loudly, or fails it where everything is to be tested.
func notChecked(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("HSM_KMS_REQUIRE_TOKENS") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skip("NOT CHECKED: " + fmt.Sprintf(format, args...))
}
