// Package peers knows which process is at the other end of a connection, from the kernel (SO_PEERCRED, LOCAL_PEERCRED),
// and admits those that the configuration allows. A peer is admitted by its uid, or, with
// socket.group set, because that group is its primary or one of its supplementary groups at the time it connected. The
// file's mode and group decide before that who can connect at all.
//
// Across user namespaces a peer has the overflow uid (65534), across pid namespaces pid 0: unknown.
//
// It depends on throttle and on gRPC, whose credentials it is. A Policy is not changed; everything may be called from any number
// of goroutines.
package peers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/hsm-kms/hsm-kms/internal/throttle"
)

// ErrRefused: the peer's uid and groups are not among those allowed.
var ErrRefused = errors.New("peer refused")

// The pauses between two log lines about refused peers, and while they go on.
const (
	logInterval = 10 * time.Second
	logLongest  = 10 * time.Minute
)

// Peer is the process that connected. It is what it was when it connected: a socket can be handed on.
type Peer struct {
	PID        int // 0: unknown
	UID, GID   uint32
	Executable string // best effort; "": unknown
}

// Policy says who is admitted.
type Policy struct {
	UIDs    []uint32
	Group   *uint32 // members are admitted too; nil: no group
	Logger  *slog.Logger
	Refused func() // told of each refusal; nil: nobody is
}

// Credentials are the gRPC transport credentials of a Unix socket: no encryption, and the kernel's word for who asks.
// The peer's side dials with insecure credentials, as kube-apiserver does.
func Credentials(policy Policy) credentials.TransportCredentials {
	return &creds{policy: policy, throttle: &throttle.Throttle{Interval: logInterval, Longest: logLongest}}
}

type creds struct {
	policy   Policy
	throttle *throttle.Throttle
}

// authInfo goes with each request of a connection.
type authInfo struct {
	credentials.CommonAuthInfo
	peer Peer
}

func (*authInfo) AuthType() string { return "peer-credentials" }

// FromContext returns the peer of a request. ok is false for one that did not come through Credentials.
func FromContext(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	info, ok := p.AuthInfo.(*authInfo)
	if !ok {
		return Peer{}, false
	}
	return info.peer, true
}

// Connection identifies the connection of a request: it is comparable, and equal for the requests of one. nil: it did not
// come through Credentials.
func Connection(ctx context.Context) any {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(*authInfo); ok {
			return info
		}
	}
	return nil
}

// Of returns the process at the other end of an open connection.
func Of(conn net.Conn) (Peer, error) {
	p, _, err := credentialsOf(conn)
	p.Executable = executable(p.PID)
	return p, err
}

// ServerHandshake admits the peer or fails; gRPC then closes the connection.
func (c *creds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, groups, err := credentialsOf(conn)
	if err != nil && isGone(err) {
		if c.policy.Logger != nil {
			c.policy.Logger.Debug("a connection ended before its peer was known: given up by the peer, or dropped among too many", "error", err)
		}
		return nil, nil, err
	}
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	case !c.policy.admits(p, groups):
		err = fmt.Errorf("%w: uid %d, gid %d", ErrRefused, p.UID, p.GID)
	}
	p.Executable = executable(p.PID)
	if err != nil {
		c.refuse(p, err)
		return nil, nil, err
	}
	info := &authInfo{peer: p}
	info.SecurityLevel = credentials.PrivacyAndIntegrity // a Unix socket: nobody is in between
	return conn, info, nil
}

// isGone reports whether the connection is no more, on our side or on the peer's: nobody was refused. Linux still knows the peer
// of a connection that its peer has closed; macOS says ENOTCONN or EINVAL of it.
func isGone(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EINVAL)
}

func (p Policy) admits(peer Peer, groups []uint32) bool {
	if slices.Contains(p.UIDs, peer.UID) {
		return true
	}
	return p.Group != nil && (peer.GID == *p.Group || slices.Contains(groups, *p.Group))
}

func (c *creds) refuse(p Peer, err error) {
	if c.policy.Refused != nil {
		c.policy.Refused()
	}
	if c.policy.Logger == nil {
		return
	}
	if pass, skipped := c.throttle.Allow(time.Now()); pass {
		c.policy.Logger.Warn("peer refused", "pid", p.PID, "uid", p.UID, "gid", p.GID, "executable", p.Executable,
			"error", err, "alsoRefused", skipped, "hint", "if it should be served, add its uid to socket.allowedUIDs or set socket.group")
	}
}

// ClientHandshake is never called: this is the server's side.
func (c *creds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

func (c *creds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peer-credentials"}
}

func (c *creds) Clone() credentials.TransportCredentials { return &creds{c.policy, c.throttle} }

func (c *creds) OverrideServerName(string) error { return nil }

// credentialsOf asks the kernel who connected, and for the supplementary groups.
func credentialsOf(conn net.Conn) (p Peer, groups []uint32, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return Peer{}, nil, fmt.Errorf("a %T has no peer credentials", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Peer{}, nil, err
	}
	var asked error
	err = raw.Control(func(fd uintptr) { p, groups, asked = ask(int(fd)) })
	if err := errors.Join(err, asked); err != nil {
		return Peer{}, nil, fmt.Errorf("asking the kernel for its credentials: %w", err)
	}
	return p, groups, nil
}
