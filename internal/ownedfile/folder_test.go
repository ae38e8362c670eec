package ownedfile_test

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

const serviceUID = 54321

func owner(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("giving a file away needs root")
	}
}

func TestMakeFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b")
	for i, want := range []bool{true, false} {
		if made, err := ownedfile.MakeFolder(path, 0o750); err != nil || made != want {
			t.Errorf("call %d: made %v, %v", i, made, err)
		}
	}
	for _, p := range []string{path, filepath.Dir(path)} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o750 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink("nowhere", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, filepath.Join(file, "below"), filepath.Join(dir, "link")} {
		if _, err := ownedfile.MakeFolder(p, 0o700); err == nil {
			t.Errorf("%s was made", p)
		}
	}
}

// Files that root makes in the service's folder are the service's, those in folders in it too.
func TestRootMakesForTheOwner(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := t.TempDir()
	if err := os.Chown(dir, serviceUID, serviceUID); err != nil {
		t.Fatal(err)
	}
	if _, err := ownedfile.MakeFolder(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := ownedfile.Make(filepath.Join(dir, "a", "b", "f"), os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	for _, p := range []string{"a", "a/b", "a/b/f"} {
		if uid := owner(t, filepath.Join(dir, p)); uid != serviceUID {
			t.Errorf("%s belongs to uid %d", p, uid)
		}
	}
	// A file that was there keeps its owner.
	if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old, made, err := ownedfile.OpenOrMake(filepath.Join(dir, "old"), os.O_RDWR, 0o600)
	if err != nil || made {
		t.Fatalf("made %v, %v", made, err)
	}
	_ = old.Close()
	if uid := owner(t, filepath.Join(dir, "old")); uid != 0 {
		t.Errorf("a file that was there was given to uid %d", uid)
	}
}

func TestOpenOrMakeFollowsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, target := range map[string]string{"to a file": filepath.Join(dir, "file"), "to nowhere": filepath.Join(dir, "nowhere")} {
		link := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Symlink(target, link)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ownedfile.OpenOrMake(link, os.O_RDWR, 0o600); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("the link was followed")
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		err  error
		hint string
	}{
		"full":      {unix.ENOSPC, "df -h " + dir},
		"quota":     {unix.EDQUOT, "df -h " + dir},
		"read-only": {unix.EROFS, "mount the file system of " + dir},
		"link":      {unix.ELOOP, path + " is a symbolic link"},
		"no folder": {unix.ENOTDIR, "namei -l " + path},
		"own mode":  {unix.EACCES, "chmod u+rw " + path},
		"other":     {unix.EIO, ""},
		"hinted":    {hint.Wrap(unix.EACCES, "first"), "first"},
	} {
		err := ownedfile.Explain(path, &fs.PathError{Op: "open", Path: path, Err: tc.err})
		if name == "hinted" {
			err = ownedfile.Explain(path, tc.err)
		}
		if !strings.Contains(hint.Of(err), tc.hint) || tc.hint == "" && hint.Of(err) != "" {
			t.Errorf("%s: %v (hint %q)", name, err, hint.Of(err))
		}
	}
	if err := ownedfile.Explain(path, nil); err != nil {
		t.Errorf("no error: %v", err)
	}
}

func TestMayWrite(t *testing.T) {
	t.Parallel()
	if err := ownedfile.MayWrite(t.TempDir()); err != nil {
		t.Errorf("a folder of our own: %v", err)
	}
	if err := ownedfile.MayWrite(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	readOnly := t.TempDir()
	if err := unix.Mount("tmpfs", readOnly, "tmpfs", unix.MS_RDONLY, "size=64k"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(readOnly, unix.MNT_DETACH) })
	if err := ownedfile.MayWrite(readOnly); !errors.Is(err, unix.EROFS) || hint.Of(err) == "" {
		t.Errorf("read-only: %v", err)
	}
}

// entry is one of an access control list.
type entry struct {
	tag, perm uint16
	id        uint32
}

const noID = ^uint32(0)

// setACL gives path an access control list, as setfacl(1) does.
func setACL(t *testing.T, path string, entries ...entry) {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	if err := unix.Setxattr(path, "system.posix_acl_access", b, 0); err != nil {
		t.Skipf("no access control lists here: %v", err)
	}
}

// The mode of a file with an access control list does not say who may write: its group bits are the list's mask, and a
// file of group root with a writer of another uid looked safe.
func TestAccessControlLists(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const user, groupObj, group, mask, other, userObj = 0x02, 0x04, 0x08, 0x10, 0x20, 0x01
	for name, tc := range map[string]struct {
		entries []entry
		want    bool
	}{
		"a user who writes":            {[]entry{{userObj, 6, noID}, {user, 6, 1000}, {groupObj, 4, noID}, {mask, 6, noID}, {other, 4, noID}}, true},
		"a group that writes":          {[]entry{{userObj, 6, noID}, {groupObj, 4, noID}, {group, 6, 1000}, {mask, 6, noID}, {other, 4, noID}}, true},
		"masked":                       {[]entry{{userObj, 6, noID}, {user, 6, 1000}, {groupObj, 4, noID}, {mask, 4, noID}, {other, 4, noID}}, false},
		"a user who reads":             {[]entry{{userObj, 6, noID}, {user, 4, 1000}, {groupObj, 6, noID}, {mask, 6, noID}, {other, 4, noID}}, false},
		"root itself and group root":   {[]entry{{userObj, 6, noID}, {user, 6, 0}, {groupObj, 6, noID}, {group, 6, 0}, {mask, 6, noID}, {other, 4, noID}}, false},
		"everybody":                    {[]entry{{userObj, 6, noID}, {user, 4, 1000}, {groupObj, 4, noID}, {mask, 4, noID}, {other, 6, noID}}, true},
		"one user reads, one writes":   {[]entry{{userObj, 6, noID}, {user, 4, 1000}, {user, 6, 1001}, {groupObj, 4, noID}, {mask, 6, noID}, {other, 4, noID}}, true},
		"the mask alone looks harmful": {[]entry{{userObj, 6, noID}, {user, 4, 1000}, {groupObj, 4, noID}, {mask, 6, noID}, {other, 4, noID}}, false},
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		setACL(t, path, tc.entries...)
		file, info, err := ownedfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		if got := info.OthersMayWrite(); got != tc.want {
			t.Errorf("%s: others may write: %v", name, got)
		}
		openings, _, err := ownedfile.Others(path)
		if err != nil || (len(openings) > 0) != tc.want {
			t.Errorf("%s: %+v, %v", name, openings, err)
		}
		if tc.want && name != "everybody" && openings[0].Fix != "setfacl -b "+path {
			t.Errorf("%s: fix %q", name, openings[0].Fix)
		}
	}
}

// The service's user may own the folder that root works in, and nobody else may.
func TestOthersOfAServicesFolder(t *testing.T) {
	t.Parallel()
	needRoot(t)
	above := t.TempDir()
	dir := filepath.Join(above, "state")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, serviceUID, serviceUID)); err != nil {
		t.Fatal(err)
	}
	if openings, _, err := ownedfile.Others(dir, serviceUID); err != nil || len(openings) != 0 {
		t.Errorf("trusted: %+v, %v", openings, err)
	}
	if openings, _, err := ownedfile.Others(dir); err != nil || len(openings) != 1 || openings[0].Above || openings[0].What != dir+" belongs to uid 54321" {
		t.Errorf("not trusted: %+v, %v", openings, err)
	}
	if err := os.Chmod(above, 0o777); err != nil {
		t.Fatal(err)
	}
	if openings, _, err := ownedfile.Others(dir, serviceUID); err != nil || len(openings) != 1 || !openings[0].Above || openings[0].Fix != "chmod go-w "+above {
		t.Errorf("the folder above: %+v, %v", openings, err)
	}
}
