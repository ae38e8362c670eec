//go:build !linux

package tokens

import (
	"os/exec"
	"testing"
)

func runApart(cmd *exec.Cmd) ([]byte, error) { return cmd.CombinedOutput() }

func cover(t *testing.T, token string, _ ...string) {
	t.Helper()
	unable(t, token, "its folders are fixed, and a private view of them needs Linux")
}
