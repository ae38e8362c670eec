// Package operator is hsm-kms operate: what follows a rotation happens by itself, and is proven. Each control-plane node runs
// one beside its plugin. Each publishes what its plugin says in a Lease of its own; one of them leads, and does what package
// state decides: it looks at the API servers, has each of them write, has old objects rewritten (evidence/migrate), and reads
// etcd until nothing is under the old key, twice, [Config.Settle] apart. It then names the command with which a person
// retires the key.
//
// It reads no PIN, opens no token, handles no DEK, and makes and destroys no key. It depends on operator/state,
// kmsplugin (the Status of the plugin), kmsplugin/metrics (its HTTP server), sources, evidence, evidence/gate,
// evidence/migrate, evidence/migrate/kubeapi, envelope, envelope/stored, atomicfile, hint and ownedfile. The plugin serves
// without it.
//
// Its memory is in Config.StateDir: for each old key, the first clean report of etcd. All else is seen again by the
// next leader. Two leaders at once do the same work twice, and no harm. A lost API server, etcd or plugin never ends it.
//
// Files: operator (the loop), leases (own Lease and leadership), nodes (the others' Leases), servers (API servers), act (what is
// done), svm (StorageVersionMigrations), kept (clean reports), dirty (what leaders tell each other), keyring (what people see),
// metrics.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/metrics"
)

// Config says what to operate on. All fields are required, save those of Migrate that its Defaults give.
type Config struct {
	Ring     string // name of the key ring
	Cluster  string // UID of the cluster that the ring belongs to; empty: it is not known here
	Socket   string // of the plugin on this node
	Node     string // name of this node, unique among those of the ring
	Hostname string // of this machine, as its kube-apiserver knows it
	StateDir string
	Version  string        // of the program
	Interval time.Duration // between two signs of life, and between two passes
	Settle   time.Duration // between the two clean readings of etcd
	Recheck  time.Duration // between two readings of etcd while nothing is to be done
	Engine   Engine        // who rewrites
	Kube     kubeapi.Config
	Groups   []string // GROUP=URL of API servers of aggregated APIs
	Etcd     sources.Options
	Migrate  migrate.Options // Namespace is that of the Leases too
	// RetireFlags are those that keys retire needs to read the same etcd, and judge it by the same rules.
	RetireFlags string
	HTTPAddress string // host:port for metrics; empty: none
	Log         *slog.Logger
}

// unknownAfter is how many intervals a Lease may stay the same.
const unknownAfter = 4

// validity is how long a Lease of ours counts.
func (c *Config) validity() time.Duration { return unknownAfter * c.Interval }

// Operator is one instance. Run or Once is called once.
type Operator struct {
	cfg  Config
	kube *kubeapi.Client
	ask  func(ctx context.Context) (kmsplugin.StatusAnswer, error)          // the plugin of this node
	open func(ctx context.Context) ([]evidence.Source, func() error, error) // etcd; the caller closes it

	// Of the leader, used by the goroutine of the passes alone.
	world   state.World
	servers []*kubeapi.Server
	report  *evidence.Report // the last reading, without any requirement
	kept    kept
	shown   shown

	hostnames map[string]bool // of the nodes that are known, in lower case
	ending    string          // a node whose certificate ends soon; empty: none

	swept     bool   // it has removed the StorageVersionMigrations of leaders before it
	delegated string // key_id of the last key that StorageVersionMigrations were made for

	failed error // of the last action, unless it found what a person has to see to; nil: it was done

	leads chan struct{} // has something when this instance begins to lead

	figures figures // mu guards it as well, but for its counters

	mu     sync.Mutex // guards the fields below
	sights sights
	own    *coordinationv1.Lease // of this node, as it was written last; nil: it is asked for first
	self   node                  // what the plugin of this node said last
	lead   leadership
	dirty  dirty
	left   int64 // objects not under the key yet, while they are rewritten
}

// New checks what a person must correct and makes an instance. Nothing is asked yet.
func New(cfg Config) (*Operator, error) {
	o := &Operator{sights: sights{}, dirty: dirty{}, leads: make(chan struct{}, 1)}
	cfg.Kube.Answered = o.figures.answered
	kube, err := kubeapi.Open(cfg.Kube)
	if err != nil {
		return nil, err
	}
	o.cfg, o.kube = cfg, kube
	o.measure()
	o.ask = func(ctx context.Context) (kmsplugin.StatusAnswer, error) { return kmsplugin.StatusOf(ctx, cfg.Socket) }
	o.open = func(ctx context.Context) ([]evidence.Source, func() error, error) { return cfg.Etcd.Open(ctx, nil) }
	o.world = state.World{Settle: cfg.Settle, Recheck: cfg.Recheck, Trouble: map[state.Action]state.Trouble{}}
	if o.kept, err = openKept(cfg.StateDir); err != nil {
		return nil, err
	}
	return o, nil
}

// Run goes on until ctx ends. Whatever fails is tried again.
func (o *Operator) Run(ctx context.Context) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics.Exposition(o.figures.registry))
	defer metrics.Keep(ctx, o.cfg.HTTPAddress, mux, o.cfg.Log)()
	var renewing sync.WaitGroup
	defer renewing.Wait()
	renewing.Go(func() { o.keepLeases(ctx) })
	tick := time.NewTicker(o.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.leads:
		case <-tick.C:
		}
		if leading := o.leading(); leading != nil {
			_, _ = o.pass(leading) // it was shown
			continue
		}
		o.forget()
	}
}

// forget drops what a leader knew: the next time it leads, it sees everything again.
func (o *Operator) forget() {
	o.world.Servers, o.world.Proof, o.world.Etcd, o.report, o.servers = nil, nil, nil, nil, nil
	clear(o.world.Trouble)
	o.shown, o.swept, o.delegated = shown{}, false, ""
	o.mu.Lock()
	defer o.mu.Unlock()
	o.figures.status = nil
}

// Result is what one pass came to.
type Result struct {
	Leader string `json:"leader"` // the node that leads; empty: nobody does, as far as is known
	// Status is the leader's; nil: another node leads.
	Status *Status `json:"status"`
}

// Once makes one pass: publishes what the plugin says, and does what is due if this node leads. The error is why something
// could not be asked, read or written; what a person has to see to is in the result. With an error the result may be nil.
func (o *Operator) Once(ctx context.Context) (*Result, error) {
	o.mu.Lock()
	o.sights = loadSights(o.cfg.StateDir)
	o.mu.Unlock()
	o.look(ctx)
	if err := o.publish(ctx); err != nil {
		return nil, err
	}
	leader, err := o.campaign(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	result := &Result{Leader: leader}
	if leading := o.leading(); leading != nil {
		result.Status, err = o.pass(leading)
		o.mu.Lock()
		dirty := len(o.dirty) > 0
		o.mu.Unlock()
		if dirty { // the next one is another process
			_, again := o.campaign(ctx, time.Now())
			err = errors.Join(err, again)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return result, errors.Join(err, o.sights.save(o.cfg.StateDir))
}

// pass sees the nodes again, and does what is due until there is nothing to do but wait. The error is why the nodes could not
// be seen or the last action could not be done; the status says it too. Status nil: ctx ended.
func (o *Operator) pass(ctx context.Context) (*Status, error) {
	o.failed = nil
	if o.cfg.Engine == EngineSVM && !o.swept {
		o.swept = o.sweep(ctx) == nil
	}
	var d state.Decision
	var seen time.Time
	for range maxSteps {
		if time.Since(seen) >= o.cfg.Interval { // an action may take hours, and what nodes say decides on the next one
			seen = time.Now()
			if err := o.see(ctx); err != nil {
				o.failed = err
				d = state.Decision{State: state.Blocked, Reason: words(err), Hint: hint.Of(err)}
				break
			}
		}
		o.world.Now, o.world.Clean = time.Now(), o.kept.times()
		d = state.Next(o.world)
		if d.Do == state.Wait || ctx.Err() != nil {
			break
		}
		if d.Do == state.Prove || d.Do == state.Migrate {
			o.show(ctx, d)
		}
		o.do(ctx, d)
	}
	if ctx.Err() != nil {
		return nil, nil // it ends, or leads no more
	}
	status := o.show(ctx, d)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.figures.pass = time.Now(); o.failed != nil {
		o.figures.failed = o.figures.pass
	}
	return status, o.failed
}

// see looks at the nodes again.
func (o *Operator) see(ctx context.Context) error {
	nodes, err := o.nodes(ctx)
	if err != nil {
		return hint.Wrap(fmt.Errorf("the nodes' Leases cannot be read: %w", err), "check that the API server answers, and that this identity may list leases: docs/operate.md")
	}
	o.world.Nodes = nodes
	o.dropStale()
	o.world.Settle = o.settle()
	return nil
}

// settle is how far apart the readings are. As for keys retire, an outage hold counts that a node publishes, or published at the
// first clean reading: a plugin may have written in it since, whatever its Lease says now.
func (o *Operator) settle() time.Duration {
	longest := o.world.LongestHold()
	for _, n := range o.world.Nodes {
		for _, key := range n.Retained {
			if file := o.kept.files[key.ID]; file != nil {
				longest = max(longest, gate.LongestHold(file.Report))
			}
		}
	}
	return gate.SettleWith(o.cfg.Settle, longest)
}

// maxSteps bounds the actions of one pass. The longest way has about ten.
const maxSteps = 30
