package tokens

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// apartMark holds, in the environment of a test's own process, the name of that test.
const apartMark = "HSM_KMS_TEST_APART"

// Apart runs the calling test in a process of its own: the test binary again, with this one test. It returns true in
// the first process when the other has ended, and the caller returns; false in the other one, where the test goes on:
//
//	if tokens.Apart(t) {
//		return
//	}
//
// In a short run the test is skipped. The other process is killed when this one ends. As root on Linux it has mount, IPC and
// PID namespaces of its own, so
// that whatever it starts ends with it.
func Apart(t *testing.T) bool {
	t.Helper()
	if os.Getenv(apartMark) == t.Name() {
		return false
	}
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	limit := 5 * time.Minute
	if deadline, ok := t.Deadline(); ok {
		limit = time.Until(deadline) * 9 / 10
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+limit.String())
	cmd.Env = append(os.Environ(), apartMark+"="+t.Name())
	out, err := runApart(cmd)
	text := string(bytes.TrimSpace(out))
	switch {
	case err != nil:
		t.Errorf("in a process of its own: %v\n%s", err, text)
	case strings.Contains(text, "--- SKIP: "+t.Name()+" "):
		t.Skip(text)
	case !strings.Contains(text, "--- PASS: "+t.Name()+" "):
		t.Errorf("the test did not run in its own process:\n%s", text)
	default:
		t.Log(text)
	}
	return true
}
