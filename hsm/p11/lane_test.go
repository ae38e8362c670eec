package p11

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The C of a lane against hostile messages, with the address and the undefined-behaviour sanitizer.
func TestLaneUnderSanitizers(t *testing.T) {
	t.Parallel()
	cc := strings.Fields(os.Getenv("CC"))
	if len(cc) == 0 {
		cc = []string{"cc"}
	}
	program := filepath.Join(t.TempDir(), "hostile")
	args := append(cc[1:], "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
		"-pthread", "-o", program, "testdata/lane/hostile.c", "lane.c", "crossing.c", "-ldl")
	if out, err := exec.CommandContext(t.Context(), cc[0], args...).CombinedOutput(); err != nil {
		t.Fatalf("compiling: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), program).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
