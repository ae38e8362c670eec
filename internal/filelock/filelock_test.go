package filelock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// The environment of a helper process: it locks the file, says so, and holds the lock until its input ends.
const helperEnv = "FILELOCK_TEST_LOCK"

// serviceUID is a user that owns nothing.
const serviceUID = 54321

func TestMain(m *testing.M) {
	path := os.Getenv(helperEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	lock, err := filelock.Try(path)
	if err != nil {
		fmt.Printf("%v; hint: %s\n", err, hint.Of(err))
		os.Exit(1)
	}
	fmt.Println("locked")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	_ = lock.Unlock()
}

// helper starts a process of the user uid (0: our own) that locks path, and returns what it said. end ends it.
func helper(t *testing.T, path string, uid uint32) (said string, end func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+path)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("helper said %q: %v", said, err)
	}
	end = sync.OnceFunc(func() { _ = in.Close(); _ = cmd.Wait() })
	t.Cleanup(end)
	return strings.TrimSpace(said), end
}

// stateDir makes a folder of the service's user in which root works too.
func stateDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("two users need root")
	}
	dir, err := os.MkdirTemp("/tmp", "filelock") // t.TempDir lies in a folder that other users cannot enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, serviceUID, serviceUID); err != nil {
		t.Fatal(err)
	}
	return dir
}

func owner(t *testing.T, path string) (uid uint32, perm fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid, info.Mode().Perm()
}

func TestOneHolderAtATime(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	said, end := helper(t, path, 0)
	if said != "locked" {
		t.Fatal(said)
	}
	if _, err := filelock.Try(path); !errors.Is(err, filelock.ErrHeld) || !strings.Contains(err.Error(), path) {
		t.Errorf("while another process holds it: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := filelock.Wait(ctx, path); !errors.Is(err, filelock.ErrHeld) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait that ends: %v", err)
	}
	waited := make(chan error, 1)
	go func() {
		lock, err := filelock.Wait(t.Context(), path)
		if err == nil {
			err = lock.Unlock()
		}
		waited <- err
	}()
	end()
	if err := <-waited; err != nil {
		t.Errorf("Wait after the other's end: %v", err)
	}
}

// Of many that contend at once, in one process too, one has the lock.
func TestContention(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	var holders, most atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				lock, err := filelock.Wait(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), holders.Add(1)))
				holders.Add(-1)
				if err := lock.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held it at once", most.Load())
	}
}

// The service's user can lock what root makes in its folder, and what an earlier release left there.
func TestRootLocksInAFolderOfTheService(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	for name, before := range map[string]func(path string) error{
		"new":          func(string) error { return nil },
		"left by root": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"made by the service": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, serviceUID, serviceUID))
		},
		"made by a third, 54322": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 54322, 54322))
		},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := before(path); err != nil {
			t.Fatal(err)
		}
		lock, err := filelock.Try(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_ = lock.Unlock()
		said, end := helper(t, path, serviceUID)
		end()
		if third := strings.Contains(name, "third"); (said == "locked") == third {
			t.Errorf("%s: the service's user: %s", name, said)
		}
		if uid, perm := owner(t, path); uid == 0 || perm != 0o600 {
			t.Errorf("%s: owner %d, mode %#o", name, uid, perm)
		}
	}
}

// Two users contend for one lock, and none is locked out for good.
func TestTwoUsersContend(t *testing.T) {
	t.Parallel()
	path := filepath.Join(stateDir(t), "keys.lock")
	said, end := helper(t, path, serviceUID)
	if said != "locked" {
		t.Fatal(said)
	}
	if _, err := filelock.Try(path); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("root, while the service has it: %v", err)
	}
	end()
	lock, err := filelock.Try(path)
	if err != nil {
		t.Fatal(err)
	}
	if said, end := helper(t, path, serviceUID); !strings.Contains(said, filelock.ErrHeld.Error()) {
		end()
		t.Errorf("the service, while root has it: %s", said)
	}
	_ = lock.Unlock()
	if said, _ := helper(t, path, serviceUID); said != "locked" {
		t.Errorf("the service, after root: %s", said)
	}
}

// The service's user puts something of root's at the lock's path: root does not give it away.
func TestRootGivesNothingElseAway(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(path string) error{
		"hard-link":   func(path string) error { return os.Link(secret, path) },
		"link":        func(path string) error { return os.Symlink(secret, path) },
		"not-empty":   func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"FIFO":        func(path string) error { return unix.Mkfifo(path, 0o600) },
		"folder":      func(path string) error { return os.Mkdir(path, 0o700) },
		"dead-socket": func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
	} {
		path := filepath.Join(dir, name)
		if err := put(path); err != nil {
			if errors.Is(err, unix.EXDEV) {
				continue
			}
			t.Fatal(err)
		}
		if lock, err := filelock.Try(path); err == nil {
			_ = lock.Unlock()
		}
		if uid, _ := owner(t, path); uid != 0 {
			t.Errorf("%s was given to uid %d", name, uid)
		}
	}
	if uid, _ := owner(t, secret); uid != 0 {
		t.Errorf("the file behind the links was given to uid %d", uid)
	}
}

// A file that cannot be locked is named with its owner, and the hint says what helps.
func TestWhatCannotBeLocked(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	foreign := filepath.Join(dir, "foreign.lock") // an old one of root's, which root has not used since
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	others := filepath.Join(dir, "others")
	if err := errors.Join(os.Mkdir(others, 0o755), os.Chown(others, 54322, 54322)); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(dir, "closed.lock")
	if err := errors.Join(os.WriteFile(closed, nil, 0o400), os.Chown(closed, serviceUID, serviceUID)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{
		foreign:                    {foreign, "belongs to uid 0 (mode 0600)", "hint: as root: chown 54321:54321 " + foreign},
		filepath.Join(others, "x"): {others + " belongs to uid 54322", "hint: run this as uid 54322 or as root"},
		closed:                     {"mode 0400", "hint: chmod u+rw " + closed},
	} {
		said, _ := helper(t, path, serviceUID)
		for _, text := range want {
			if !strings.Contains(said, text) {
				t.Errorf("%s: %q lacks %q", path, said, text)
			}
		}
	}
}

// mount gives a folder of its own file system, or skips.
func mount(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestReadOnlyAndFull(t *testing.T) {
	t.Parallel()
	full := mount(t, "size=64k,nr_inodes=2") // the folder and one file
	if err := os.WriteFile(filepath.Join(full, "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := filelock.Try(filepath.Join(full, "lock"))
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(hint.Of(err), "df -i "+full) {
		t.Errorf("full: %v (hint %q)", err, hint.Of(err))
	}
	if lock, err := filelock.Try(filepath.Join(full, "old")); err != nil {
		t.Errorf("a lock file that is there needs no room: %v", err)
	} else if err := lock.Unlock(); err != nil {
		t.Error(err)
	}

	readOnly := mount(t, "size=64k")
	if err := unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err = filelock.Try(filepath.Join(readOnly, "lock"))
	if !errors.Is(err, unix.EROFS) || !strings.Contains(hint.Of(err), "mount the file system of "+readOnly) {
		t.Errorf("read-only: %v (hint %q)", err, hint.Of(err))
	}
}

func TestSharedAndExclusive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "trail")
	open := func() *os.File {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		return file
	}
	writer, reader, second := open(), open(), open()
	if err := errors.Join(filelock.TryShared(reader), filelock.TryShared(second)); err != nil {
		t.Fatalf("two readers: %v", err)
	}
	if err := filelock.TryFile(writer); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("a writer beside readers: %v", err)
	}
	if err := errors.Join(filelock.Release(reader), filelock.Release(second)); err != nil {
		t.Fatal(err)
	}
	if err := filelock.WaitFile(t.Context(), writer); err != nil {
		t.Errorf("a writer after the readers: %v", err)
	}
}
