package softhsm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// show gives softhsm2-util's view of a token's store.
func show(t *testing.T, token *Token) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "softhsm2-util", "--show-slots")
	cmd.Env = append(os.Environ(), token.Env()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestTokenIsPrivate(t *testing.T) {
	t.Parallel()
	a, b := ForTest(t, "token-a"), ForTest(t, "token-b")
	if slots := show(t, a); !strings.Contains(slots, "token-a") || strings.Contains(slots, "token-b") {
		t.Errorf("slots of a:\n%s", slots)
	}
	if slots := show(t, b); strings.Contains(slots, "token-a") {
		t.Errorf("slots of b:\n%s", slots)
	}
	if info, err := os.Stat(a.PINFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("PIN file: %v, %v; want mode 0600", info, err)
	}
	pin, err := a.PIN()
	if other, err2 := b.PIN(); err != nil || err2 != nil || len(pin) < 20 || pin == other {
		t.Errorf("PINs are not random: %v, %v", err, err2)
	}
	if _, err := New(t.Context(), a.Dir, "again", ""); err == nil {
		t.Error("a second New in the same folder was not refused")
	}
}

func TestAnother(t *testing.T) {
	t.Parallel()
	a := ForTest(t, "token-a")
	b, err := a.Another(t.Context(), "token-b", "1234-5678")
	if err != nil {
		t.Fatal(err)
	}
	if slots := show(t, b); !strings.Contains(slots, "token-a") || !strings.Contains(slots, "token-b") {
		t.Errorf("slots:\n%s", slots)
	}
	if pin, err := b.PIN(); err != nil || pin != "1234-5678" {
		t.Errorf("PIN = %q, %v", pin, err)
	}
	if _, err := a.Another(t.Context(), "token-a", ""); err == nil {
		t.Error("a taken label was not refused")
	}
}

func TestCopyAndTakeAway(t *testing.T) {
	t.Parallel()
	a := ForTest(t, "token-a")
	b, err := a.CopyTo(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	putBack, err := a.TakeAway()
	if err != nil {
		t.Fatal(err)
	}
	if slots := show(t, b); !strings.Contains(slots, "token-a") {
		t.Errorf("slots of the copy:\n%s", slots)
	}
	if pin, err := b.PIN(); err != nil || pin == "" {
		t.Errorf("PIN of the copy: %v", err)
	}
	if err := os.MkdirAll(a.Store(), 0o700); err != nil { // as SoftHSM does
		t.Fatal(err)
	}
	if err := putBack(); err != nil {
		t.Fatal(err)
	}
	if slots := show(t, a); !strings.Contains(slots, "token-a") {
		t.Errorf("slots after it was put back:\n%s", slots)
	}
}
