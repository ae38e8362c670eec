package kmsplugin

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// StatusTimeout is kube-apiserver's own default for a call.
const StatusTimeout = 3 * time.Second

// StatusAnswer is a plugin's answer to Status.
type StatusAnswer struct {
	Version string
	Healthz string // "ok", or what is wrong
	KeyID   string
	Pending []health.Pending // keys to come, the next one first
	// ReadRings are the rings that it only reads. Their Problem has its words alone.
	ReadRings []health.ReadRing
	// Retained are the keys that were current and are still served, the oldest first; at most maxRetainedTold.
	Retained []envelope.KeyID
	// Hold is what the outage hold has; nil: it is off.
	Hold *holdfile.State
}

// StatusOf asks the plugin at socketPath for its Status over the connection that kube-apiserver would make, but does not
// wait for a plugin that is not there. ctx bounds it. Errors: the gRPC status, of code Unavailable when nobody answers. Hold is
// set with an error too, if a plugin answered.
func StatusOf(ctx context.Context, socketPath string) (StatusAnswer, error) {
	conn, err := Dial(socketPath)
	if err != nil {
		return StatusAnswer{}, err
	}
	defer func() { _ = conn.Close() }()
	var trailer metadata.MD
	answer, err := kmsapi.NewKeyManagementServiceClient(conn).Status(ctx, &kmsapi.StatusRequest{}, grpc.Trailer(&trailer))
	if err != nil {
		advice := "the plugin's log on this node has the cause, and what to do about it"
		if conn.GetState() != connectivity.Ready { // nobody answered, or somebody hung up
			advice = "check that hsm-kms serve runs, that --socket is its socket.path, that you are root or a user of socket.allowedUIDs, and that its log has no refused peer"
		}
		return StatusAnswer{Hold: holdIn(trailer)}, hint.Wrap(fmt.Errorf("asking %s for its status: %w", socketPath, err), advice)
	}
	return StatusAnswer{
		Version: answer.Version, Healthz: answer.Healthz, KeyID: answer.KeyId, Pending: pendingIn(trailer), Retained: retainedIn(trailer),
		ReadRings: readRingsIn(trailer), Hold: holdIn(trailer),
	}, nil
}

// Dial prepares a connection to the plugin at socketPath as kube-apiserver does (k8s.io/apiserver,
// envelope/kmsv2/grpc_service.go): authority localhost, no encryption. The caller closes it.
func Dial(socketPath string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+socketPath,
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socketPath)
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("preparing a connection to %s: %w", socketPath, err)
	}
	return conn, nil
}
