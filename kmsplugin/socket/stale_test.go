package socket

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLeftOverOfAKilledPlugin(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	helper := startHelper(t, path)
	mustRefuse(t, Config{Path: path}, ErrInUse) // it lives
	if !answers(path) {
		t.Error("the other plugin does not answer any more")
	}
	if err := helper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = helper.Wait()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("no left-over to test with: %v", err)
	}
	mustListen(t, Config{Path: path})
	if !answers(path) {
		t.Error("nobody answers")
	}
}

// A live socket of something that knows no lock: another plugin, or an older one.
func TestLiveSocketWithoutALock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	mustRefuse(t, Config{Path: path}, ErrInUse)
	if !answers(path) {
		t.Error("the other does not answer any more")
	}
}

// A listener whose backlog is full does not accept just now, and lives.
func TestLiveSocketWithAFullBacklog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			break // full
		}
		defer func() { _ = conn.Close() }()
	}
	mustRefuse(t, Config{Path: path}, ErrInUse)
}

func TestSomethingElseInTheWay(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]func(path string) error{
		"file":   func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"FIFO":   func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":   func(path string) error { return os.Symlink("/etc/passwd", path) },
		"link to nowhere": func(path string) error {
			return os.Symlink(path+".nowhere", path)
		},
		"datagram socket": func(path string) error {
			_, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			return err
		},
		"another user's socket": func(path string) error {
			l, err := net.Listen("unix", path)
			if err != nil {
				return err
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			return errors.Join(l.Close(), os.Lchown(path, 4242, -1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.HasPrefix(name, "another user") && os.Geteuid() != 0 {
				t.Skip("giving a file away needs root")
			}
			path := filepath.Join(t.TempDir(), "s")
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			mustRefuse(t, Config{Path: path}, ErrOccupied)
		})
	}
}

func TestLockFileIsNoLink(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	if err := os.Symlink(path+".other", path+".lock"); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, Config{Path: path}, unix.ELOOP)
	if _, err := os.Lstat(path + ".other"); err == nil {
		t.Error("the link was followed")
	}
}

// Only what is certain is absent: no file, or a socket that nobody listens on.
func TestIsAbsent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	if !IsAbsent(t.Context(), path) {
		t.Error("there is no file, and somebody may listen")
	}
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	if IsAbsent(t.Context(), path) {
		t.Error("somebody listens, and is absent")
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if !IsAbsent(t.Context(), path) {
		t.Error("a socket was left behind, and somebody may listen")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if IsAbsent(ctx, path) {
		t.Error("it could not be looked at, and is absent")
	}
}
