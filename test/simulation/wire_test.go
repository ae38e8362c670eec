package simulation

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

// wire is a listener in memory, since time in a bubble stands still while a goroutine waits for a real socket. Its
// connections tell the plugin the peer's credentials through a real one, which carries nothing else.
type wire struct {
	peer    syscall.RawConn
	waiting chan net.Conn
	closed  chan struct{}
	close   sync.Once
}

// newWire makes a listener; the socket pair is the test's.
func newWire(pair *net.UnixConn) (*wire, error) {
	raw, err := pair.SyscallConn()
	return &wire{peer: raw, waiting: make(chan net.Conn), closed: make(chan struct{})}, err
}

// socketPair is a connection whose peer is this process.
func socketPair(t *testing.T) *net.UnixConn {
	t.Helper()
	lis, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	conn, err := net.Dial("unix", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UnixConn)
}

type wireConn struct {
	net.Conn
	peer syscall.RawConn
}

func (c wireConn) SyscallConn() (syscall.RawConn, error) { return c.peer, nil }

func (w *wire) Accept() (net.Conn, error) {
	select {
	case conn := <-w.waiting:
		return wireConn{conn, w.peer}, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error {
	w.close.Do(func() { close(w.closed) })
	return nil
}

func (w *wire) Addr() net.Addr { return &net.UnixAddr{Name: "in memory", Net: "unix"} }

func (w *wire) dial(ctx context.Context, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case w.waiting <- theirs:
		return ours, nil
	case <-w.closed:
		return nil, errors.New("nobody listens")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect is the API server's side.
func (w *wire) connect() (*grpc.ClientConn, kmsapi.KeyManagementServiceClient, error) {
	conn, err := grpc.NewClient("passthrough:///plugin", grpc.WithContextDialer(w.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, nil, err
	}
	return conn, kmsapi.NewKeyManagementServiceClient(conn), nil
}
