package socket

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFolder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		prepare  func(t *testing.T, dir string) string // returns the socket's folder
		safe     bool
		needRoot bool
	}{
		{name: "as made", prepare: func(_ *testing.T, dir string) string { return dir }, safe: true},
		{name: "read by all", prepare: modes(0o755, 0o755), safe: true},
		{name: "written by others", prepare: modes(0o755, 0o757)},
		{name: "sticky", prepare: modes(0o755, 0o777|fs.ModeSticky)},
		{name: "above, written by others", prepare: modes(0o777, 0o755)},
		{name: "above, sticky", prepare: modes(0o777|fs.ModeSticky, 0o755), safe: true},
		{name: "link of ours", prepare: func(t *testing.T, dir string) string {
			must(t, os.Symlink(mkdir(t, filepath.Join(dir, "real"), 0o755), filepath.Join(dir, "link")))
			return filepath.Join(dir, "link")
		}, safe: true},
		{name: "link to an unsafe one", prepare: func(t *testing.T, dir string) string {
			must(t, os.Symlink(mkdir(t, filepath.Join(dir, "real"), 0o777), filepath.Join(dir, "link")))
			return filepath.Join(dir, "link")
		}},
		{name: "link to nowhere", prepare: func(t *testing.T, dir string) string {
			must(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "link")))
			return filepath.Join(dir, "link")
		}},
		{name: "another's link", needRoot: true, prepare: func(t *testing.T, dir string) string {
			must(t, os.Symlink(mkdir(t, filepath.Join(dir, "real"), 0o755), filepath.Join(dir, "link")))
			must(t, os.Lchown(filepath.Join(dir, "link"), 4242, -1))
			return filepath.Join(dir, "link")
		}},
		{name: "another's", needRoot: true, prepare: func(t *testing.T, dir string) string {
			must(t, os.Chown(mkdir(t, filepath.Join(dir, "d"), 0o755), 4242, -1))
			return filepath.Join(dir, "d")
		}},
		{name: "another group may write", needRoot: true, prepare: func(t *testing.T, dir string) string {
			must(t, os.Chown(mkdir(t, filepath.Join(dir, "d"), 0o775), -1, 4242))
			return filepath.Join(dir, "d")
		}},
		{name: "a file", prepare: func(t *testing.T, dir string) string {
			must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
			return filepath.Join(dir, "f")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.needRoot && os.Geteuid() != 0 {
				t.Skip("giving a file away needs root")
			}
			path := filepath.Join(c.prepare(t, t.TempDir()), "s")
			l, err := Listen(Config{Path: path})
			if err == nil {
				defer func() { _ = l.Release() }()
				defer func() { _ = l.Close() }()
			}
			if c.safe != (err == nil) {
				t.Errorf("error = %v", err)
			}
			if c.name != "a file" && !c.safe && !errors.Is(err, ErrFolder) {
				t.Errorf("error = %v, want %v", err, ErrFolder)
			}
		})
	}
}

// modes makes two folders, one in the other.
func modes(above, folder fs.FileMode) func(*testing.T, string) string {
	return func(t *testing.T, dir string) string {
		return mkdir(t, filepath.Join(mkdir(t, filepath.Join(dir, "above"), above), "d"), folder)
	}
}

func mkdir(t *testing.T, path string, mode fs.FileMode) string {
	t.Helper()
	must(t, os.Mkdir(path, 0o700))
	must(t, os.Chmod(path, mode))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
