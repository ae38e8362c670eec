package atomicfile_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// The environment of helper processes: one writes to the path until it is killed, one may write files of a kilobyte only.
const (
	writerEnv = "ATOMICFILE_TEST_WRITE"
	limitEnv  = "ATOMICFILE_TEST_LIMIT"
)

const serviceUID = 54321

// two contents that a reader may find, each larger than what one write(2) may be cut to.
var contents = [][]byte{bytes.Repeat([]byte("a"), 64<<10), bytes.Repeat([]byte("b"), 48<<10)}

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		for i := 0; ; i++ {
			if err := atomicfile.WriteState(path, contents[i%2]); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			if i == 0 {
				fmt.Println("writing")
			}
		}
	}
	if path := os.Getenv(limitEnv); path != "" {
		signal.Ignore(unix.SIGXFSZ)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1024, Max: 1024}); err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		fmt.Println(atomicfile.WriteState(path, contents[0]))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func info(t *testing.T, path string) (uid, gid uint32, perm fs.FileMode) {
	t.Helper()
	found, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := found.Sys().(*syscall.Stat_t)
	return stat.Uid, stat.Gid, found.Mode().Perm()
}

// only wants content at path and nothing beside it.
func only(t *testing.T, path string, content []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(content))
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

func TestWriteState(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "proven.json")
	for _, content := range contents {
		if err := atomicfile.WriteState(path, content); err != nil {
			t.Fatal(err)
		}
		only(t, path, content)
		if _, _, perm := info(t, path); perm != 0o600 {
			t.Errorf("mode %#o", perm)
		}
	}
}

// A file that is to be new is whole and for its owner alone; one that is there stays as it is, and a link too.
// TestReadStateOfFIFO: a FIFO is refused, also one that another has open and writes nothing to.
func TestReadStateOfFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, found, err := atomicfile.ReadState(path, 100)
		if !found && err != nil {
			err = errors.Join(err, errors.New("and it is said not to be there"))
		}
		read <- err
	}()
	select {
	case err = <-read:
	case <-time.After(10 * time.Second):
		_ = held.Close() // ends the read
		t.Error("it hangs:", <-read)
		return
	}
	_ = held.Close()
	if err == nil || !strings.HasSuffix(err.Error(), "it is not a regular file") {
		t.Error(err)
	}
}

func TestDecodeState(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		`{"a":1}`: true, " {\"a\":1}\n": true,
		``: false, `{"b":1}`: false, `{"a":1}{}`: false, `{"a":1}}`: false, `{"a":1}]`: false, `{"a":1}x`: false, "{\"a\":1}\x00": false,
	} {
		var to struct{ A int }
		if err := atomicfile.DecodeState([]byte(text), &to); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret.yaml")
	if err := atomicfile.Create(path, contents[0]); err != nil {
		t.Fatal(err)
	}
	only(t, path, contents[0])
	if _, _, perm := info(t, path); perm != 0o600 {
		t.Errorf("mode %#o", perm)
	}
	if err := atomicfile.Create(path, contents[1]); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second time: %v", err)
	}
	only(t, path, contents[0])
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path+".other", link); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Create(link, contents[1]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a link: %v", err)
	}
}

// A writer that is killed at any moment leaves a whole file, and the next write removes what it left beside.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	for range 20 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), writerEnv+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 64)
		if n, err := out.Read(said); err != nil || string(said[:n]) != "writing\n" {
			t.Fatalf("%q, %v", said[:n], err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
			t.Fatalf("half-written: %d bytes, %v", len(got), err)
		}
	}
	if err := atomicfile.WriteState(path, contents[0]); err != nil {
		t.Fatal(err)
	}
	only(t, path, contents[0])
}

func TestManyWriters(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 10 {
				if err := atomicfile.WriteState(path, contents[i%2]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
		t.Fatalf("half-written: %d bytes, %v", len(got), err)
	}
	only(t, path, got)
}

// A file that another process is writing just now is no left-over.
func TestFileInUseIsNoLeftOver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	held, err := os.Create(filepath.Join(filepath.Dir(path), ".state.new-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = filelock.Release(held) }()
	if err := filelock.TryFile(held); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.WriteState(path, contents[0]); err != nil {
		t.Fatal(err)
	}
	if !filelock.IsAt(held, held.Name()) {
		t.Error("it was removed")
	}
}

// A file that root writes in a folder of the service's user belongs to that user, also where an earlier release left root's.
func TestRootWritesState(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("two users need root")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, serviceUID, serviceUID+1); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "state")
	for range 2 {
		if err := os.WriteFile(path, []byte("root's"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := atomicfile.WriteState(path, contents[0]); err != nil {
			t.Fatal(err)
		}
		if uid, gid, perm := info(t, path); uid != serviceUID || gid != serviceUID+1 || perm != 0o600 {
			t.Errorf("owner %d:%d, mode %#o", uid, gid, perm)
		}
	}
}

func TestReplaceKeepsOwnerAndMode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, link := filepath.Join(dir, "real", "f"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(path, contents[0], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, perm := info(t, path); perm != 0o644 {
		t.Errorf("new: mode %#o", perm)
	}
	own := uint32(os.Geteuid())
	if own == 0 {
		own = serviceUID
	}
	if err := errors.Join(os.Chown(path, int(own), -1), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(link, contents[1], 0o600); err != nil {
		t.Fatal(err)
	}
	only(t, path, contents[1])
	if uid, _, perm := info(t, path); uid != own || perm != 0o640 {
		t.Errorf("owner %d, mode %#o; want %d, 0640", uid, perm, own)
	}
	if target, err := os.Readlink(link); err != nil || target != path {
		t.Errorf("the link: %q, %v", target, err)
	}
	if err := atomicfile.Replace(dir, contents[0], 0o600); err == nil {
		t.Error("a folder was replaced")
	}
}

// A disk that is full at the new file, or within it, leaves the old file, nothing beside it, and a hint.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]string{"no inode": "size=64k,nr_inodes=2", "no room": "size=8k"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
				t.Skipf("mounting a tmpfs: %v", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			path := filepath.Join(dir, "state")
			if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := atomicfile.WriteState(path, contents[0])
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) || !strings.Contains(hint.Of(err), "df -h "+dir) {
				t.Errorf("%v (hint %q)", err, hint.Of(err))
			}
			only(t, path, []byte("old"))
		})
	}
}

// The same without root: a limit on the size of files, which the write of the content meets.
func TestWriteThatIsCutShort(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), limitEnv+"="+path)
	said, err := cmd.Output()
	if err != nil || !strings.Contains(string(said), "file too large") {
		t.Fatalf("%q, %v", said, err)
	}
	only(t, path, []byte("old"))
}

func TestReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "size=64k"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	err := atomicfile.WriteState(filepath.Join(dir, "state"), contents[0])
	if !errors.Is(err, unix.EROFS) || !strings.Contains(hint.Of(err), "read-write") {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
}
