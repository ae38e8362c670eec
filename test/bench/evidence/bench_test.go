//go:build e2e

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// The whole of it on a small store: it fails when a report or a verification does not see every object and DEK.
func TestSmall(t *testing.T) {
	t.Parallel()
	bin, err := plugin.FindProgram()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "bench")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the benchmark: %v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), program, "-bin", bin, "-objects", "3001", "-deks", "23", "-keys", "3", "-rounds", "1", "-migrate", "150",
		"-out", t.TempDir()).CombinedOutput()
	if err != nil || strings.Count(string(out), "PASS")+strings.Count(string(out), "MISS") != 9 {
		t.Errorf("%v:\n%s", err, out)
	}
}
