package audit

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func makeFIFO(path string) error { return unix.Mkfifo(path, 0o600) }

func TestOneWriter(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	if _, err := Open(Options{Path: path, LockWait: time.Millisecond}); !errors.Is(err, ErrInUse) {
		t.Fatalf("err = %v, want ErrInUse", err)
	}
	// A file renamed under its writer must not let another fork the chain.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Path: path, LockWait: time.Millisecond}); !errors.Is(err, ErrInUse) {
		t.Fatalf("err = %v, want ErrInUse", err)
	}
	closeIt(t, w)
	closeIt(t, open(t, path))
	wantOK(t, verify(t, path, path+".1"))
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(path string) error
		want    string
	}{
		"symlink":        {func(p string) error { return os.Symlink(filepath.Join(filepath.Dir(p), "other"), p) }, "symbolic link"},
		"folder":         {func(p string) error { return os.Mkdir(p, 0o700) }, "is a directory"},
		"fifo":           {makeFIFO, "not a regular file"},
		"others write":   {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o622)) }, "others may write"},
		"world folder":   {func(p string) error { return os.Chmod(filepath.Dir(p), 0o777|fs.ModeSticky) }, "anybody may write"},
		"no folder":      {func(p string) error { return os.Remove(filepath.Dir(p)) }, "no such file"},
		"another's file": {func(p string) error { return os.WriteFile(p, []byte("root:x:0:0\n"), 0o600) }, "holds no record"},
		"long and no record": {func(p string) error {
			return os.WriteFile(p, bytes.Repeat([]byte("{\"time\":\""+strings.Repeat("x", 100)+"\n"), maxTail/100), 0o600)
		}, "no record in its last"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "sub", "audit.log")
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := tc.prepare(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			w, err := Open(Options{Path: path})
			if err == nil {
				t.Fatal("opened", w.Close())
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("err = %v, want %q in it", err, tc.want)
			}
			after, _ := os.Lstat(path)
			if before != nil && (after == nil || after.Size() != before.Size()) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestLongestRecord: every bound at its limit, each byte in its longest escape, is still a line for Verify.
func TestLongestRecord(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\x01", 5000)
	r := Record{Operation: long, RequestUID: long, KeyID: long, Code: long, Duration: 1 << 62, Peer: Peer{1 << 30, 1 << 31, long}, Object: long, Reason: long}
	line, _ := link(appendRecord(nil, 1<<63, &r), 0, noRecord())
	if len(line) > maxLine/2+maxLine/4 {
		t.Fatalf("%d bytes", len(line))
	}
	if _, ok := parseLine(line); !ok {
		t.Fatal("not a record")
	}
}

// A volume of the pod is open to all, as kubelet makes an emptyDir. Only an opt-in takes it, and only a mount point.
func TestOpenInAVolumeOfThePod(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=2777,size=1m"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	plain := filepath.Join(dir, "plain")
	if err := errors.Join(os.Mkdir(plain, 0o700), os.Chmod(plain, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir       string
		allow, ok bool
	}{{dir, false, false}, {dir, true, true}, {plain, true, false}} {
		w, err := Open(Options{Path: filepath.Join(c.dir, "audit.log"), PodVolume: c.allow})
		if c.ok != (err == nil) {
			t.Errorf("%s, PodVolume %t: %v", c.dir, c.allow, err)
		}
		if err == nil {
			closeIt(t, w)
		}
	}
}
