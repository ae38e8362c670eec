package kmsplugin

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/hsm-kms/hsm-kms/internal/throttle"
	"github.com/hsm-kms/hsm-kms/kmsplugin/limits"
	"github.com/hsm-kms/hsm-kms/kmsplugin/peers"
)

// Bounds of the server. A message of this API has a few hundred bytes; 64 KiB leaves room for annotations that are
// refused with a code of their own.
const (
	maxMessage      = 64 << 10
	maxHeaderList   = 4 << 10         // kube-apiserver sends a few hundred bytes; each half-sent request keeps them
	flowWindow      = 64 << 10        // fixed windows: no BDP pings on a local socket, and bounded memory for each connection
	ioBuffer        = 4 << 10         // for each connection and direction; gRPC's own default is 32 KiB
	handshakeLimit  = 5 * time.Second // from accept to the end of the HTTP/2 preface
	idleLimit       = time.Hour       // kube-apiserver asks every minute; who is idle for that long has forgotten us
	minPingInterval = 30 * time.Second
	dropLogInterval = 10 * time.Second // between two log lines about connections that had to go
	dropLogLongest  = 10 * time.Minute
)

// streamsPerSlot times MaxInFlight bounds the requests of one connection. With more streams than slots, the refusal of
// what is too much is ours and comes at once, and a Status behind a heap of Decrypts on kube-apiserver's one connection
// is not kept waiting for a stream.
const streamsPerSlot = 2

// streamWorkers is how many goroutines are kept for requests: as many as kube-apiserver has requests under way when many
// objects are read at once. One that is started for a request grows its stack first, a tenth of the processor time.
const streamWorkers = 64

// Run serves on lis until ctx ends, and then drains: no new connections, requests in flight get DrainLimit, and nil is
// returned. It closes lis; removing a socket file (socket.Listener.Release) is the caller's, after Run. An error means
// that lis failed. systemd is told of readiness, of the state and of the end.
func (p *Plugin) Run(ctx context.Context, lis net.Listener) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer stop() // after the drain: Status is asked during it
	defer p.guard.failures.stop()
	running.Go(func() { p.health.Run(background) })
	if p.options.Hold != nil {
		running.Go(func() { p.options.Hold.Run(background) })
	}
	for _, reader := range p.options.ReadRings {
		running.Go(func() { reader.Run(background) })
	}
	running.Go(func() { p.notify.Watch(background, p.Live) })

	p.waitForFirstProbe(ctx)
	server := p.newServer()
	bounds := p.options.Conns
	bounds.Dropped = p.dropped()
	limited := limits.Limit(lis, bounds)
	p.guard.slots.Share(func() int { s := limited.Stats(); return s.Open - s.Unfinished })
	served := make(chan error, 1)
	go func() { served <- server.Serve(limited) }()
	p.notify.Ready()
	p.options.Logger.Info("serving", "socket", lis.Addr().String())

	select {
	case err := <-served:
		server.Stop()
		return fmt.Errorf("serving on %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	p.notify.Stopping()
	p.drain(server)
	return nil
}

// dropped counts each connection that had to go, and logs those that had come to ask, with pauses.
func (p *Plugin) dropped() func(net.Conn, limits.Reason) {
	pace := &throttle.Throttle{Interval: dropLogInterval, Longest: dropLogLongest}
	return func(c net.Conn, why limits.Reason) {
		p.options.Metrics.ConnectionDropped()
		if why == limits.Unfinished {
			return
		}
		pass, skipped := pace.Allow(time.Now())
		if !pass {
			return
		}
		peer, err := peers.Of(c)
		if err != nil {
			return // it has ended by itself
		}
		p.options.Logger.Warn("a connection was closed to make room", "reason", string(why), "pid", peer.PID, "uid", peer.UID,
			"executable", peer.Executable, "alsoClosed", skipped, "hint", "kube-apiserver needs one connection for each KMS provider: find out what else connects")
	}
}

// drain lets requests in flight end, and cuts them off when they take too long: a call into an HSM can hang forever.
func (p *Plugin) drain(server *grpc.Server) {
	p.options.Logger.Info("draining")
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		server.GracefulStop()
	}()
	limit := time.NewTimer(p.options.DrainLimit)
	defer limit.Stop()
	select {
	case <-drained:
	case <-limit.C:
		// Stop ends the connections and the requests' contexts. It cannot end a handler that does not look at its
		// context, and neither it nor GracefulStop is waited for: the process is about to end.
		p.options.Logger.Warn("requests in flight took too long, and are cut off", "after", p.options.DrainLimit)
		go server.Stop()
	}
	p.options.Logger.Info("stopped")
}

// newServer makes the gRPC server. There is no reflection, no compression and no other service on it: what is not part
// of KMS v2 is Unimplemented.
func (p *Plugin) newServer() *grpc.Server {
	server := grpc.NewServer(
		grpc.Creds(peers.Credentials(peers.Policy{
			UIDs:    p.options.AllowedUIDs,
			Group:   p.options.Group,
			Logger:  p.options.Logger,
			Refused: p.options.Metrics.PeerRefused,
		})),
		grpc.UnknownServiceHandler(p.guard.unknown),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(uint32(streamsPerSlot*p.options.MaxInFlight)),
		grpc.StaticStreamWindowSize(flowWindow),
		grpc.StaticConnWindowSize(flowWindow),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		// Reused goroutines: a new one for each request grows its stack each time. When all are at work, a new one is
		// started after all, so hanging calls do not keep others waiting.
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleLimit}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPingInterval, PermitWithoutStream: true}),
	)
	server.RegisterService(p.guard.methods(), p.service)
	return server
}
