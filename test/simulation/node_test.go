package simulation

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
)

// wallClock is a node's: the bubble's time, and how far the node is off.
type wallClock struct{ off atomic.Int64 }

func (c *wallClock) skew() time.Duration    { return time.Duration(c.off.Load()) }
func (c *wallClock) set(skew time.Duration) { c.off.Store(int64(skew)) }
func (c *wallClock) now() time.Time         { return time.Now().Round(0).Add(c.skew()) }

// nodeRing is the real ring as the plugin of a node with this clock sees it. The plugin compares activations with
// time.Now, which is right in all nodes, so that the activations are moved instead.
type nodeRing struct {
	*envelope.Ring
	clock *wallClock
}

func (r nodeRing) Advance() envelope.View {
	view := r.Ring.Advance()
	skew := r.clock.skew()
	moved := func(v envelope.Version) envelope.Version {
		if !v.Activation.IsZero() {
			v.Activation, v.Until = v.Activation.Add(-skew), v.Until.Add(-skew)
		}
		return v
	}
	point := func(v *envelope.Version) *envelope.Version {
		if v == nil {
			return nil
		}
		m := moved(*v)
		return &m
	}
	view.Current, view.Deferred = point(view.Current), point(view.Deferred)
	for i := range view.Versions {
		view.Versions[i] = moved(view.Versions[i])
	}
	return view
}

// node is a control-plane node: clock, ways to tokens, the plugin's folder, at most one running plugin, and the API
// server that polls it.
type node struct {
	name    string
	clock   *wallClock
	links   links
	refresh time.Duration
	state   string // stateDir

	eager bool // the broken variant: every key counts as due at once

	limit     time.Duration // outageHold; 0: off
	booted    time.Time
	suspended atomic.Int64    // nanoseconds that the machine stood still
	hold      *hold.Hold      // of the plugin that runs; nil: it has none
	seen      map[string]bool // what its plugins have sealed or opened, by ciphertext

	mu     sync.Mutex
	events []hold.Event // of all its plugins
	before int          // of them, of those before the one that runs

	stop    func() // nil: the plugin does not run
	started time.Time
	conn    *grpc.ClientConn
	client  kmsapi.KeyManagementServiceClient

	named  string         // key_id of the last good Status of this process; "": none
	latest envelope.KeyID // latest that Status named; kept over restarts with their file
	sealed string         // key_id of the DEK that its API server writes with
}

// start runs a plugin from what stateDir holds. wire is its listener.
func (n *node) start(w *wire) error {
	proven, err := health.LoadProven(n.state, ringName)
	if err != nil {
		return err
	}
	now := n.clock.now
	if n.eager {
		now = func() time.Time { return n.clock.now().Add(100 * 365 * 24 * time.Hour) }
	}
	ring := envelope.NewRing(envelope.RingConfig{
		Name: ringName, Profile: envelope.AESGCM, Floor: proven.Key, Now: now, Grace: deferGrace, AbsentAfter: absentAfter,
	}, n.links)
	n.hold, n.before = nil, len(n.events)
	if n.limit > 0 {
		n.hold = hold.New(hold.Config{
			Ring: ring, StateDir: n.state, Limit: n.limit, CallTimeout: callTimeout, Now: n.clock.now, Boot: n.boot, BootID: "boot",
			Record: n.record,
		})
	}
	plugin := kmsplugin.New(kmsplugin.Options{
		Hold: n.hold,
		Ring: nodeRing{ring, n.clock}, StateDir: n.state, Proven: proven, RefreshInterval: n.refresh,
		Random: func(d time.Duration) time.Duration { return d / 3 }, // a run is the plan's alone
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = plugin.Run(ctx, w) })
	conn, client, err := w.connect()
	if err != nil {
		cancel()
		return err
	}
	n.conn, n.client, n.started, n.named = conn, client, time.Now(), ""
	n.stop = func() {
		_ = conn.Close()
		cancel()
		running.Wait()
		n.stop, n.client = nil, nil
	}
	return nil
}

// callTimeout is that of every token, for the hold alone: the simulated tokens have none.
const callTimeout = 2 * time.Second

// boot is CLOCK_BOOTTIME.
func (n *node) boot() time.Duration { return time.Hour + time.Since(n.booted) + n.stoodStill() }

func (n *node) stoodStill() time.Duration { return time.Duration(n.suspended.Load()) }

func (n *node) record(e hold.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, e)
}

// apiServerTimeout is kube-apiserver's default for a call.
const apiServerTimeout = 3 * time.Second

func (n *node) status() (*kmsapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), apiServerTimeout)
	defer cancel()
	answer, err := n.client.Status(ctx, &kmsapi.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	n.named = answer.KeyId
	return answer, nil
}

func (n *node) encrypt(dek []byte) (*kmsapi.EncryptResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), apiServerTimeout)
	defer cancel()
	return n.client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: dek, Uid: "simulation"}, grpc.WaitForReady(true))
}

func (n *node) open(o object) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), apiServerTimeout)
	defer cancel()
	answer, err := n.client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: o.ciphertext, KeyId: o.keyID, Uid: "simulation"}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	return answer.Plaintext, nil
}

// deferGrace and absentAfter are those of every node.
const deferGrace, absentAfter = time.Hour, 5 * time.Minute

// lives reports whether the plugin has run, and one way to a token has been usable, for a while.
func (n *node) lives(before time.Duration) bool {
	if n.stop == nil || time.Since(n.started) < before {
		return false
	}
	for _, l := range n.links {
		if l.usable(before) {
			return true
		}
	}
	return false
}

// settled reports whether, besides, nothing changed on the ways lately. A node that knows of no key from before needs all its
// tokens: none may be current that one of them lacks.
func (n *node) settled(before time.Duration) bool {
	for _, l := range n.links {
		l.mu.Lock()
		changed := time.Since(l.changed) < before
		l.mu.Unlock()
		if changed || n.latest.IsZero() && !l.usable(before) {
			return false
		}
	}
	return n.lives(before)
}

// object is a DEK as etcd has it.
type object struct {
	keyID      string
	ciphertext []byte
	dek        string
	by         string
	at         time.Time
}

func (o object) String() string {
	return fmt.Sprintf("what %s sealed under %s at %s", o.by, short(o.keyID), o.at.Format(time.TimeOnly))
}
