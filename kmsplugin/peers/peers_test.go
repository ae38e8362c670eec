package peers

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/peer"
)

// shake connects to a socket of policy's and returns what the handshake says of the peer. connect runs in between.
func shake(t *testing.T, policy Policy, address string, connect func()) (Peer, error) {
	t.Helper()
	lis, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	connect()
	conn, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, info, err := Credentials(policy).ServerHandshake(conn)
	if err != nil {
		return Peer{}, err
	}
	p, ok := FromContext(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info}))
	if !ok {
		t.Error("FromContext finds no peer")
	}
	return p, nil
}

func dial(t *testing.T, address string) func() {
	return func() {
		conn, err := net.Dial("unix", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

func TestOwnUID(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "s")
	p, err := shake(t, Policy{UIDs: []uint32{uint32(os.Geteuid())}}, address, dial(t, address))
	if err != nil || p.PID != os.Getpid() || int(p.UID) != os.Geteuid() || int(p.GID) != os.Getegid() {
		t.Errorf("%+v, %v", p, err)
	}
	if exe, err := os.Executable(); err == nil && p.Executable != "" && p.Executable != exe {
		t.Errorf("executable = %q, want %q", p.Executable, exe)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "s")
	var log bytes.Buffer
	refused := 0
	_, err := shake(t, Policy{UIDs: []uint32{4242}, Logger: slog.New(slog.NewTextHandler(&log, nil)), Refused: func() { refused++ }},
		address, dial(t, address))
	if !errors.Is(err, ErrRefused) || refused != 1 {
		t.Errorf("error = %v, counted %d", err, refused)
	}
	if !strings.Contains(log.String(), "uid=") || !strings.Contains(log.String(), "pid=") {
		t.Errorf("log: %s", &log)
	}
}

// deaf is a connection of which the kernel says err.
type deaf struct {
	net.Conn
	err error
}

func (d deaf) SyscallConn() (syscall.RawConn, error) { return nil, d.err }

// A connection that is gone before its peer is known is no refusal: nobody is to be paged for it. One whose peer the kernel
// will not tell is.
func TestGoneBeforeItIsKnown(t *testing.T) {
	t.Parallel()
	for err, refusals := range map[error]int{net.ErrClosed: 0, syscall.ENOTCONN: 0, syscall.EPERM: 1} {
		var log bytes.Buffer
		refused := 0
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		_, _, got := Credentials(Policy{UIDs: []uint32{0}, Logger: logger, Refused: func() { refused++ }}).ServerHandshake(deaf{err: err})
		if !errors.Is(got, err) || refused != refusals {
			t.Errorf("%v: error = %v, %d counted", err, got, refused)
		}
		if text := log.String(); strings.Contains(text, "peer refused") != (refusals > 0) || strings.Contains(text, "level=DEBUG") == (refusals > 0) {
			t.Errorf("%v: log: %s", err, text)
		}
	}
}

// A client that connects and goes at once is known all the same, and admitted.
func TestGoneAfterItConnected(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "s")
	p, err := shake(t, Policy{UIDs: []uint32{uint32(os.Geteuid())}, Refused: func() { t.Error("refused") }}, address, func() {
		conn, err := net.Dial("unix", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	})
	if runtime.GOOS == "linux" && (err != nil || p.PID != os.Getpid()) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestAdmits(t *testing.T) {
	t.Parallel()
	group := uint32(50)
	for name, c := range map[string]struct {
		policy Policy
		peer   Peer
		groups []uint32
		want   bool
	}{
		"uid":                            {Policy{UIDs: []uint32{0, 7}}, Peer{UID: 7, GID: 7}, nil, true},
		"another uid":                    {Policy{UIDs: []uint32{0, 7}}, Peer{UID: 8, GID: 7}, []uint32{0, 7}, false},
		"primary group":                  {Policy{Group: &group}, Peer{UID: 8, GID: 50}, nil, true},
		"supplementary group":            {Policy{Group: &group}, Peer{UID: 8, GID: 8}, []uint32{1, 50}, true},
		"another group":                  {Policy{Group: &group}, Peer{UID: 8, GID: 8}, []uint32{1}, false},
		"group root, no group set":       {Policy{}, Peer{UID: 8, GID: 0}, []uint32{0}, false},
		"the overflow uid, not admitted": {Policy{UIDs: []uint32{0}}, Peer{UID: 65534, GID: 65534}, nil, false},
	} {
		if got := c.policy.admits(c.peer, c.groups); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestNotAUnixSocket(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if _, _, err := Credentials(Policy{UIDs: []uint32{0}}).ServerHandshake(a); !errors.Is(err, ErrRefused) {
		t.Errorf("error = %v", err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = lis.Close() }()
	conn, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// The kernel answers SO_PEERCRED for any socket; for TCP with uid -1 and pid 0.
	if _, _, err := Credentials(Policy{UIDs: []uint32{0, uint32(os.Geteuid())}}).ServerHandshake(conn); !errors.Is(err, ErrRefused) {
		t.Errorf("TCP: error = %v", err)
	}
}

func TestFromContextWithout(t *testing.T) {
	t.Parallel()
	if _, ok := FromContext(context.Background()); ok {
		t.Error("a peer from nowhere")
	}
}
