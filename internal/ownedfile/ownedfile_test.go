package ownedfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

func TestOpenTellsWhatWasOpened(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	file, info, err := ownedfile.Open(link)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if info.Size != 3 || info.Perm != 0o600 || !info.Regular || !info.OwnerTrusted() || info.OthersMayWrite() {
		t.Errorf("opened file = %+v", info)
	}
	if again, err := ownedfile.Stat(file); err != nil || again != info {
		t.Errorf("an unchanged file differs: %+v, %v", again, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if again, err := ownedfile.Stat(file); err != nil || again == info {
		t.Errorf("a changed mode is not seen: %+v, %v", again, err)
	}
	if _, isLink, err := ownedfile.Lstat(link); err != nil || !isLink {
		t.Errorf("Lstat of a link: link = %v, %v", isLink, err)
	}
}

func TestOpenDoesNotWaitForAFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	file, info, err := ownedfile.Open(path) // would block forever without O_NONBLOCK
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if info.Regular {
		t.Error("a FIFO passed for a regular file")
	}
}

func TestOpenAbsent(t *testing.T) {
	t.Parallel()
	if _, _, err := ownedfile.Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("err = %v, want fs.ErrNotExist", err)
	}
}

func TestOthersMayWrite(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		perm fs.FileMode
		gid  uint32
		want bool
	}{
		{0o644, 100, false}, {0o755, 0, false}, {0o664, 0, false}, {0o664, 100, true}, {0o646, 0, true}, {0o1777, 0, true},
	} {
		if got := (ownedfile.Info{Perm: tc.perm, GID: tc.gid}).OthersMayWrite(); got != tc.want {
			t.Errorf("mode %04o of group %d: %v, want %v", tc.perm, tc.gid, got, tc.want)
		}
	}
}

func TestOwnerTrusted(t *testing.T) {
	t.Parallel()
	own := uint32(os.Geteuid())
	for uid, want := range map[uint32]bool{0: true, own: true, own + 12345: false} {
		if got := (ownedfile.Info{UID: uid}).OwnerTrusted(); got != want {
			t.Errorf("uid %d: %v, want %v", uid, got, want)
		}
	}
}
