package kmsplugin

import (
	"context"
	"net"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"
)

func TestDrainLetsRequestsEnd(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring})
	entered, release := blockOpen(ring)
	c := client(t, p.path)
	got := make(chan error, 1)
	go func() {
		_, err := c.Decrypt(context.Background(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
		got <- err
	}()
	<-entered
	p.cancel()
	eventually(t, "new connections are refused", func() bool {
		conn, err := net.Dial("unix", p.path)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-p.done:
		t.Fatalf("Run ended before the request: %v", err)
	default:
	}
	release()
	if err := <-got; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	if err := <-p.done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

// A handler that looks at nothing, as under an HSM that hangs, does not hold the end up.
func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring, DrainLimit: 50 * time.Millisecond})
	entered, hang := make(chan struct{}), make(chan struct{})
	defer close(hang)
	ring.set(func(r *fakeRing) {
		r.open = func(context.Context, string, []byte) ([]byte, error) {
			close(entered)
			<-hang
			return nil, nil
		}
	})
	c := client(t, p.path)
	go func() {
		_, _ = c.Decrypt(context.Background(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
	}()
	<-entered
	p.cancel()
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Run does not end")
	}
}

func TestRunTellsThatTheListenerFailed(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	lis, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	_ = lis.Close()
	if err := New(Options{Ring: ring}).Run(t.Context(), lis); err == nil {
		t.Error("no error")
	}
}

// systemd is told of readiness once requests are served, of the state, and of the end. The environment is the
// process's, so this test is not parallel.
func TestSystemdIsTold(t *testing.T) {
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: t.TempDir() + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = manager.Close() }()
	t.Setenv("NOTIFY_SOCKET", manager.LocalAddr().String())
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring})
	next := func() string {
		_ = manager.SetReadDeadline(time.Now().Add(10 * time.Second))
		buffer := make([]byte, 500)
		n, err := manager.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
	for i, want := range []string{"STATUS=ok, key_id " + id.String(), "READY=1", "STOPPING=1"} {
		if got := next(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if i == 1 {
			if _, err := StatusOf(t.Context(), p.path); err != nil {
				t.Errorf("ready, and not serving: %v", err)
			}
			p.cancel()
		}
	}
}
