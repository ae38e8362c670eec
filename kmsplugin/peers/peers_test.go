package peers

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
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
