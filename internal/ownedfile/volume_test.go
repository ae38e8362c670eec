package ownedfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A volume is one, and nothing else is: not a folder below it, not a plain folder, not one of another user.
func TestIsVolume(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	volume, below, plain, another := filepath.Join(dir, "a volume"), filepath.Join(dir, "a volume", "below"), filepath.Join(dir, "plain"), filepath.Join(dir, "another")
	for _, folder := range []string{volume, below, plain, another} {
		if err := errors.Join(os.Mkdir(folder, 0o700), os.Chmod(folder, 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(another, 54321, -1); err != nil {
			t.Fatal(err)
		}
	} else {
		another = plain
	}
	mountinfo := "22 1 0:21 / / rw - overlay overlay rw\n"
	for _, point := range []string{volume, another} {
		if point != plain {
			mountinfo += fmt.Sprintf("23 22 0:22 / %s rw,relatime - tmpfs tmpfs rw\n", strings.ReplaceAll(point, " ", `\040`))
		}
	}
	for path, want := range map[string]bool{volume: true, below: false, plain: false, another: false, dir + "/none": false} {
		if got := isVolume(path, mountinfo); got != want {
			t.Errorf("%s: %t, want %t", path, got, want)
		}
	}
	if points := mountPoints("short line\n\n1 2 3:4 / /a\\134b rw\n"); len(points) != 1 || points[0] != `/a\b` {
		t.Errorf("mount points %q", points)
	}
}
