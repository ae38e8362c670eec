package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// helperEnv makes the test program one that is activated: it takes the socket over, answers one connection, and tells
// how it went.
const helperEnv = "SYSTEMD_TEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) == "" {
		os.Exit(m.Run())
	}
	l, err := Listener()
	switch {
	case err != nil:
		fmt.Printf("error: %v; hint: %s", err, hint.Of(err))
	case l == nil:
		fmt.Print("none")
	default:
		conn, err := l.Accept()
		if err == nil {
			_, err = conn.Write([]byte("hello"))
			_ = conn.Close()
		}
		fmt.Printf("served %v, close %v, environment %q", err, l.Close(), os.Getenv("LISTEN_FDS"))
	}
}

// activate runs the helper as systemd would: the descriptors from 3 on, and the environment. $$ is the helper's own
// process id, since exec keeps it.
func activate(t *testing.T, files []*os.File, meanwhile func()) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=1", fmt.Sprintf("LISTEN_FDS=%d", len(files)),
		"GORACE=atexit_sleep_ms=0") // the race detector's helper would else sleep a second at its end
	cmd.ExtraFiles = files
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	if err := cmd.Wait(); err != nil {
		t.Errorf("helper: %v", err)
	}
	return out.String()
}

func fileOf(t *testing.T, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

func unixFile(t *testing.T, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	file := fileOf(t, l)
	_ = l.Close()
	return file
}

func TestActivation(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	out := activate(t, []*os.File{unixFile(t, path)}, func() {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		buffer := make([]byte, 10)
		if n, err := conn.Read(buffer); string(buffer[:n]) != "hello" {
			t.Errorf("%q, %v", buffer[:n], err)
		}
	})
	if out != `served <nil>, close <nil>, environment ""` {
		t.Errorf("helper: %s", out)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the manager's socket was removed: %v", err)
	}
}

func TestActivationWithSomethingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/d", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.Create(dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string][]*os.File{
		"two":      {unixFile(t, dir+"/1"), unixFile(t, dir+"/2")},
		"datagram": {fileOf(t, datagram)},
		"TCP":      {fileOf(t, tcp)},
		"a file":   {plain},
	} {
		out := activate(t, files, func() {})
		if !strings.HasPrefix(out, "error: ") || !strings.Contains(out, "hint: let the socket unit") {
			t.Errorf("%s: %s", name, out)
		}
	}
	if out := activate(t, nil, func() {}); out != "none" {
		t.Errorf("no activation: %s", out)
	}
}

// manager is a notification socket, and what came in on it. The environment is the process's: no parallel tests.
func manager(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		buffer := make([]byte, 500)
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
}

func TestNotify(t *testing.T) {
	next := manager(t)
	n := Notifier{Logger: slog.New(slog.DiscardHandler)}
	n.Ready()
	n.Status("ok")
	n.Stopping()
	for _, want := range []string{"READY=1", "STATUS=ok", "STOPPING=1"} {
		if got := next(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWatchdog(t *testing.T) {
	next := manager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	n := Notifier{Logger: slog.New(slog.DiscardHandler)}
	looks := 0
	go func() {
		defer close(done)
		n.Watch(ctx, func() error {
			if looks++; looks > 3 && looks < 6 {
				return errors.New("stuck")
			}
			n.Status(fmt.Sprint(looks))
			return nil
		})
	}()
	for _, look := range []string{"1", "2", "3", "6"} { // nothing while it was stuck
		if got := next(); got != "STATUS="+look {
			t.Errorf("%q before look %s", got, look)
		}
		if got := next(); got != "WATCHDOG=1" {
			t.Errorf("%q", got)
		}
	}
	cancel()
	<-done
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	n := Notifier{Logger: slog.New(slog.DiscardHandler)}
	n.Ready()
	n.Watch(t.Context(), func() error { return nil }) // returns at once
	t.Setenv("WATCHDOG_USEC", "nonsense")
	n.Watch(t.Context(), func() error { return nil })
}
