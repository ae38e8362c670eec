package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestClosedTo: what another user could not read, by owner and mode alone, so that it needs no root.
func TestClosedTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]os.FileMode{"open": 0o644, "group": 0o640, "closed": 0o600, "token/key": 0o600} {
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Symlink("closed", at("link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	own, other := uint32(os.Geteuid()), uint32(os.Geteuid())+12345 //nolint:gosec // uids
	if got := closedTo(own, dir); got != nil {
		t.Errorf("closed to their owner: %q", got)
	}
	if got, want := closedTo(other, dir), []string{at("closed"), at("token/key")}; !slices.Equal(got, want) {
		t.Errorf("closed to another: %q, want %q", got, want)
	}
	if got := closedTo(other, at("absent")); got != nil {
		t.Errorf("what is not there: %q", got)
	}
}

// TestSoftHSMTokens: as softhsm2.conf(5) has it.
func TestSoftHSMTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "softhsm2.conf")
	if err := os.WriteFile(path, []byte("# comment\ndirectories.tokendir = /srv/tokens/\nobjectstore.backend = file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", path)
	if got := softHSMTokens(); !slices.Equal(got, []string{"/srv/tokens"}) {
		t.Errorf("folders %q", got)
	}
	t.Setenv("SOFTHSM2_CONF", path+".absent")
	if got := softHSMTokens(); got != nil {
		t.Errorf("without a configuration: %q", got)
	}
}
