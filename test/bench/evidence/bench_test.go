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
	for _, test := range []struct {
		judged int // lines
		args   []string
	}{{9, []string{"-objects", "3001", "-migrate", "150"}}, {4, []string{"-curve", "600,3001"}}} {
		args := append(test.args, "-bin", bin, "-deks", "23", "-keys", "3", "-rounds", "1", "-out", t.TempDir())
		out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
		if err != nil || strings.Count(string(out), "PASS")+strings.Count(string(out), "MISS") != test.judged {
			t.Errorf("%v: %v:\n%s", test.args, err, out)
		}
	}
}
