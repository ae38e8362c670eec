package socket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// kept is a listener that is kept, and says "hello" to every client.
type kept struct {
	*Listener
	t    *testing.T
	path string
	mu   sync.Mutex
	log  bytes.Buffer
	done chan error // Accept's last error
}

func (k *kept) Write(p []byte) (int, error) { k.mu.Lock(); defer k.mu.Unlock(); return k.log.Write(p) }

func (k *kept) said(text string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Count(k.log.String(), text)
}

func keep(t *testing.T) *kept {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "s")
	k := &kept{Listener: mustListen(t, Config{Path: path, Mode: 0o660}), t: t, path: path, done: make(chan error, 1)}
	go func() {
		for {
			conn, err := k.Accept()
			if err != nil {
				k.done <- err
				return
			}
			_, _ = io.WriteString(conn, "hello")
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); k.keep(ctx, time.Millisecond, slog.New(slog.NewTextHandler(k, nil))) }()
	t.Cleanup(func() { cancel(); <-ended })
	return k
}

// serves reports whether it is our listener that answers at the path.
func (k *kept) serves() bool {
	conn, err := net.Dial("unix", k.path)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	text := make([]byte, 5)
	_, err = io.ReadFull(conn, text)
	return err == nil && string(text) == "hello"
}

func (k *kept) eventually(what string, ok func() bool) {
	k.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.t.Fatalf("never: %s\n%s", what, &k.log)
		}
	}
}

func TestKeepMakesItAgain(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(path string) error{
		"the file is removed":   os.Remove,
		"the folder is removed": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
		"it is moved away":      func(path string) error { return os.Rename(path, path+".away") },
		"a left-over is moved there": func(path string) error {
			l, err := net.Listen("unix", path+".other")
			if err != nil {
				return err
			}
			l.(*net.UnixListener).SetUnlinkOnClose(false)
			return errors.Join(l.Close(), os.Rename(path+".other", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keep(t)
			before, err := net.Dial("unix", k.path)
			if err != nil || !k.serves() {
				t.Fatalf("it does not serve: %v", err)
			}
			defer func() { _ = before.Close() }()
			if err := remove(k.path); err != nil {
				t.Fatal(err)
			}
			k.eventually("it serves again", func() bool { return k.Renewals() == 1 && k.serves() })
			k.eventually("it says so", func() bool { return k.said("is made again") == 1 })
			if !k.Listening() || mode(t, k.path) != 0o660 {
				t.Errorf("listening %t, mode %#o", k.Listening(), mode(t, k.path))
			}
			if _, err := io.ReadFull(before, make([]byte, 5)); err != nil {
				t.Errorf("the connection that was there: %v", err)
			}
			// The lock is one that others see, and the end takes the new file away.
			if _, err := Listen(Config{Path: k.path}); !errors.Is(err, ErrInUse) {
				t.Errorf("another plugin: %v", err)
			}
			if err := errors.Join(k.Close(), k.Release()); err != nil {
				t.Error(err)
			}
			if err := <-k.done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v", err)
			}
			if _, err := os.Lstat(k.path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

// A file that somebody else has put there stays: it is logged once, and the path is taken again when it is free.
func TestKeepLeavesWhatIsNotOurs(t *testing.T) {
	t.Parallel()
	for name, put := range map[string]func(t *testing.T, path string) (undo func()){
		"a file": func(t *testing.T, path string) func() {
			t.Helper()
			if err := errors.Join(os.WriteFile(path+".new", []byte("another's"), 0o600), os.Rename(path+".new", path)); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(path) }
		},
		"a live plugin in a folder made again": func(t *testing.T, path string) func() {
			t.Helper()
			folder := filepath.Dir(path)
			if err := os.Mkdir(folder+".new", 0o755); err != nil {
				t.Fatal(err)
			}
			other := startHelper(t, folder+".new/s")
			exchange(t, folder, folder+".new")
			return func() { _ = other.Process.Kill(); _ = other.Wait() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := keep(t)
			undo := put(t, k.path)
			there, _, err := lstat(k.path)
			k.eventually("it is lost", func() bool { return !k.Listening() })
			for range 20 { // looks: nothing is said twice, nothing is touched
				time.Sleep(time.Millisecond)
			}
			if now, _, nowErr := lstat(k.path); err != nil || nowErr != nil || now != there {
				t.Error("what was there is gone")
			}
			if n := k.said("cannot be made again"); n != 1 || k.said("hint=") != n {
				t.Errorf("said %d times", n)
			}
			undo()
			k.eventually("it serves again", func() bool { return k.Listening() && k.serves() })
		})
	}
}

// A plugin that ends while it makes the socket again leaves none behind.
func TestKeepAfterClose(t *testing.T) {
	t.Parallel()
	l := mustListen(t, Config{Path: filepath.Join(t.TempDir(), "s")})
	if err := errors.Join(l.Close(), os.Remove(l.cfg.Path)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l.keep(ctx, time.Millisecond, slog.New(slog.DiscardHandler))
	if ctx.Err() != nil {
		t.Error("it goes on after Close")
	}
	if _, err := os.Lstat(l.cfg.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket is there: %v", err)
	}
}
