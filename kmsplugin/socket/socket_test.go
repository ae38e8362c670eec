package socket

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// helperEnv makes the test program a helper process that listens at the path in it until it is killed.
const helperEnv = "SOCKET_TEST_LISTEN_AT"

func TestMain(m *testing.M) {
	if path := os.Getenv(helperEnv); path != "" {
		unix.Umask(0) // whatever the umask, the modes must be right
		if _, err := Listen(Config{Path: path}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("listening")
		select {}
	}
	os.Exit(m.Run())
}

// startHelper starts a process that listens at path, and returns when it does.
func startHelper(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "listening\n" {
		t.Fatalf("helper: %q, %v", line, err)
	}
	return cmd
}

func mustListen(t *testing.T, cfg Config) *Listener {
	t.Helper()
	l, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = l.Release() })
	return l
}

// mustRefuse wants an error of the kind, with a hint, and what is at path untouched.
func mustRefuse(t *testing.T, cfg Config, kind error) {
	t.Helper()
	before, _, beforeErr := lstat(cfg.Path)
	l, err := Listen(cfg)
	if err == nil {
		_ = l.Close()
		_ = l.Release()
		t.Fatal("Listen succeeded")
	}
	if !errors.Is(err, kind) || hint.Of(err) == "" {
		t.Errorf("error = %v (hint %q), want %v", err, hint.Of(err), kind)
	}
	after, _, afterErr := lstat(cfg.Path)
	if before != after || (beforeErr == nil) != (afterErr == nil) {
		t.Errorf("what was in the way is not there any more: %v", afterErr)
	}
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func answers(path string) bool {
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

func TestListenAndRelease(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b", "kms.sock")
	l := mustListen(t, Config{Path: path})
	if !answers(path) {
		t.Error("nobody answers")
	}
	if got := mode(t, path); got != 0o600 {
		t.Errorf("mode of the socket = %#o", got)
	}
	if got := mode(t, filepath.Dir(path)); got != 0o755 {
		t.Errorf("mode of the folder = %#o", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("Close removed the socket, Release is to: %v", err)
	}
	for range 2 {
		if err := l.Release(); err != nil {
			t.Errorf("Release = %v", err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	mustListen(t, Config{Path: path}) // the lock was given up
}

func TestModeAndGroup(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	gid := uint32(os.Getegid())
	if os.Geteuid() == 0 {
		gid = 4242
	}
	mustListen(t, Config{Path: path, Mode: 0o660, Group: &gid})
	_, st, err := lstat(path)
	if err != nil || st.Gid != gid || mode(t, path) != 0o660 {
		t.Errorf("group %d, mode %#o, %v", st.Gid, mode(t, path), err)
	}
}

// Under umask 0 too, the socket is nobody else's from its first moment, and what is made has the modes it should have.
func TestUmask(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	startHelper(t, filepath.Join(dir, "s"))
	for path, want := range map[string]fs.FileMode{dir: 0o755, dir + "/s": 0o600, dir + "/s.lock": 0o600} {
		if got := mode(t, path); got != want {
			t.Errorf("mode of %s = %#o, want %#o", path, got, want)
		}
	}
	l, err := listenNarrow(filepath.Join(dir, "narrow"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if got := mode(t, filepath.Join(dir, "narrow")); got&0o077 != 0 {
		t.Errorf("mode at the bind = %#o", got)
	}
}

// Release leaves what somebody else put in the socket's place.
func TestReleaseUnlinksOnlyItsOwn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l := mustListen(t, Config{Path: path})
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), l.Release()); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "another's" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, cfg := range map[string]Config{
		"relative":    {Path: "kms.sock"},
		"not clean":   {Path: dir + "/../x"},
		"abstract":    {Path: "@kms"},
		"too long":    {Path: dir + "/" + strings.Repeat("s", 108)},
		"for others":  {Path: dir + "/s", Mode: 0o666},
		"for all":     {Path: dir + "/s", Mode: 0o601},
		"set-user-ID": {Path: dir + "/s", Mode: 0o4600},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := Listen(cfg)
			if err == nil {
				_ = l.Close()
				t.Fatal("no error")
			}
			if hint.Of(err) == "" {
				t.Errorf("%v: no hint", err)
			}
		})
	}
	// As long as it can be.
	room := 107 - len(dir) - 1
	if room > 0 && room < 250 && len(unix.RawSockaddrUnix{}.Path) == 108 {
		mustListen(t, Config{Path: dir + "/" + strings.Repeat("s", room)})
	}
}

func TestOneOfManyWins(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			l, err := Listen(Config{Path: path})
			if err == nil {
				wins.Add(1)
				t.Cleanup(func() { _ = l.Close(); _ = l.Release() })
			} else if !errors.Is(err, ErrInUse) {
				t.Errorf("a loser: %v", err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 || !answers(path) {
		t.Errorf("%d won", wins.Load())
	}
}
