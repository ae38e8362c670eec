package app

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/hsm/guard"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// Commands that root runs work in the stateDir of the service's user, and all that they leave is that user's: the lock of
// the ring, the lock and the record of a login.
func TestRootInAStateDirOfTheService(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("two users need root")
	}
	const serviceUID = 54321
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, serviceUID, serviceUID), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	// An earlier release left these.
	for _, name := range []string{"keys.lock"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := PrepareStateDir(&config.Config{StateDir: dir}); err != nil {
		t.Fatal(err)
	}
	unlock, err := LockKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	refused := func() (guard.Outcome, error) { return guard.Refused, errors.New("refused") }
	tag := func([]byte) (uint32, error) { return 1, nil }
	if err := guard.New(dir, nil).Attempt(t.Context(), guard.Token{Name: "token", Clean: true}, tag, refused); err == nil {
		t.Fatal("no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, entry := range entries {
		info, _, err := ownedfile.Lstat(filepath.Join(dir, entry.Name()))
		if err != nil || info.UID != serviceUID {
			t.Errorf("%s belongs to uid %d (%v)", entry.Name(), info.UID, err)
		}
	}
}

// A folder above stateDir that others may write lets them put another stateDir in its place, without the record of refused PINs.
func TestStateDirThatOthersMayReplace(t *testing.T) {
	t.Parallel()
	above := t.TempDir()
	dir := filepath.Join(above, "state")
	if err := PrepareStateDir(&config.Config{StateDir: dir}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(above, 0o777); err != nil {
		t.Fatal(err)
	}
	err := PrepareStateDir(&config.Config{StateDir: dir})
	if err == nil || !strings.Contains(err.Error(), "others may write to "+above) || !strings.HasPrefix(hint.Of(err), "chmod go-w "+above) {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
}

func TestOneChangeOfTheRingAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := LockKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockKeys(dir); !IsFinding(err) {
		t.Errorf("the second: %v", err)
	}
	unlock()
	again, err := LockKeys(dir)
	if err != nil {
		t.Fatalf("after the first: %v", err)
	}
	again()
}

// A stateDir that is a volume of the pod is open to all, as kubelet makes an emptyDir. Only an opt-in takes it, and only a
// mount point.
func TestStateDirInAVolumeOfThePod(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=2777,size=64k"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	plain := filepath.Join(dir, "plain")
	if err := errors.Join(os.Mkdir(plain, 0o700), os.Chmod(plain, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir   string
		allow bool
		ok    bool
	}{{dir, false, false}, {dir, true, true}, {plain, true, false}} {
		err := PrepareStateDir(&config.Config{StateDir: c.dir, AllowPodVolumes: c.allow})
		if c.ok != (err == nil) {
			t.Errorf("%s, allowPodVolumes %t: %v", c.dir, c.allow, err)
		}
	}
}
