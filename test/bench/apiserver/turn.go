package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

const (
	opCreate = "create"
	opGet    = "get"
	// readyPoll is how often /readyz is asked: how exact the time to ready is.
	readyPoll = 20 * time.Millisecond
)

// kind is one kind of load on a running API server.
type kind struct {
	op      string
	clients int
}

// kinds are the loads of a turn, in their order.
func kinds() []kind { return []kind{{opCreate, 1}, {opCreate, 8}, {opGet, 1}, {opGet, 8}} }

// turn is what came of one life of an API server.
type turn struct {
	Ready   time.Duration // from the start of the process to /readyz ok
	Filled  time.Duration // the watch cache of Secrets, from its beginning until it was full; 0: not told
	List    time.Duration // the first list of all Secrets, asked for when ready
	Again   time.Duration // the same once more
	Decrypt int           // Decrypts that the HSM did until the first list was answered
	AtOnce  int           // the most calls that were in the HSM at once until then
	Loads   map[kind]measure.Sample
	Steady  int // calls of the HSM while Secrets were created and read
}

// Listed is from the start of the process to the whole list.
func (t *turn) Listed() time.Duration { return t.Ready + t.List }

// turn gives the variant's API server one life.
func (w *rig) turn(ctx context.Context, v variant, round int) (t turn, err error) {
	if v.boot {
		if err := w.plugin.Stop(); err != nil {
			return t, err
		}
	}
	w.fault.DelayAll(v.delay)
	defer w.fault.DelayAll(0)
	w.fault.ResetCounters()
	defer func() {
		err = errors.Join(err, v.server.StopAPIServer())
		if err == nil {
			err = v.store.reset(ctx)
		}
	}()
	if t.Ready, err = w.untilReady(ctx, v); err != nil {
		return t, err
	}
	c, err := newClient(ctx, v.server)
	if err != nil {
		return t, err
	}
	defer c.close()
	for _, took := range []*time.Duration{&t.List, &t.Again} {
		if *took, err = c.list(ctx, w.options.secrets); err != nil {
			return t, err
		}
	}
	t.Decrypt, t.AtOnce = w.fault.Calls("C_Decrypt"), w.fault.MaxInFlight()
	if t.Filled, err = c.cacheFilled(ctx); err != nil {
		return t, err
	}
	if !v.away && t.Decrypt < len(v.store.deks) {
		return t, fmt.Errorf("the HSM did %d Decrypts for a list under %d DEKs: what was measured is not what was meant", t.Decrypt, len(v.store.deks))
	}
	before := w.fault.TotalCalls()
	t.Loads = map[kind]measure.Sample{}
	for _, k := range kinds() {
		if t.Loads[k], err = c.load(ctx, k, w.options, round); err != nil {
			return t, err
		}
	}
	t.Steady = w.fault.TotalCalls() - before
	return t, nil
}

// untilReady starts the API server, and the plugin if it is to start with it, and tells how long it took until the API
// server was ready.
func (w *rig) untilReady(ctx context.Context, v variant) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	server, start := v.server, time.Now()
	if v.boot {
		if _, err := w.plugin.Serve(); err != nil {
			return 0, err
		}
	}
	if err := server.StartAPIServer(ctx); err != nil {
		return 0, err
	}
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		code, text, err := server.Health(ctx, "/readyz")
		if err == nil && code == http.StatusOK {
			return time.Since(start), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for the API server: %w (last: %d %s, %w)", context.Cause(ctx), code, text, err)
		case <-server.APIServer().Done():
			return 0, fmt.Errorf("starting the API server: it ended with %w", server.APIServer().Err())
		case <-tick.C:
		}
	}
}

// load puts one kind of load on the API server: Secrets created in a namespace of their own, or those that were stored
// before read again.
func (c *client) load(ctx context.Context, k kind, o *options, round int) (measure.Sample, error) {
	l := measure.Load{Clients: k.clients, Ops: o.ops}
	if k.clients > 1 {
		l.Ops *= 3
	}
	bodies := make([][]byte, l.Ops)
	if k.op == opCreate {
		for i := range bodies {
			var err error
			if bodies[i], err = kubestore.Secret(createdIn, fmt.Sprintf("secret-%d-%d-%d", round, k.clients, i), randomBytes(o.size)); err != nil {
				return measure.Sample{}, err
			}
		}
	}
	return measure.Drive(ctx, l, func(_, call int) error {
		if k.op == opCreate {
			return c.create(ctx, createdIn, bodies[call])
		}
		// A stride that meets every namespace and DEK, in another order than the list's.
		return c.get(ctx, (call*37)%o.secrets)
	})
}
