package operator

import (
	"fmt"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

// mostIdle is how many requests a node may make in an hour in which nothing is to be done: docs/performance.md.
const mostIdle = 400

// What an hour costs in which nothing is to be done: the leader, another node, and the mean of all. In state Steady, and in
// Retirable, where the leader also looks at the API servers.
func TestIdle(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 10, 100} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			t.Parallel()
			if nodes > 10 && testing.Short() {
				t.Skip("make test runs it")
			}
			c := newIdle(t, nodes)
			for _, name := range []state.Name{state.Steady, state.Retirable} {
				leader, other := c.hour(t, name)
				mean := (leader + (nodes-1)*other) / nodes
				t.Logf("%d nodes, %s: requests per hour: leader %d, another node %d, mean %d", nodes, name, leader, other, mean)
				if mean > mostIdle || other > mostIdle {
					t.Errorf("more than %d an hour", mostIdle)
				}
			}
		})
	}
}

// idle is a cluster in which nothing is to be done: each node has its operate and its API server, which is one here.
type idle struct {
	api       *api
	plugin    *plugin
	operators []*Operator
	current   state.Key
	old       string
	read      time.Time // when etcd was read
}

func newIdle(t *testing.T, nodes int) *idle {
	t.Helper()
	current, old := keyID(t, time.Now().Add(-100*time.Hour)), keyID(t, time.Now().Add(-200*time.Hour))
	p := newPlugin(t, current)
	c := &idle{api: newAPI(t), plugin: p, current: state.Key{ID: current}, old: old, read: time.Now().Add(-10 * time.Minute)}
	for i := range nodes {
		o := newOperator(t, c.api, p, fmt.Sprintf("cp-%d", i+1))
		o.cfg.Interval = 30 * time.Second
		c.operators = append(c.operators, o)
	}
	for range 3 { // until everybody was seen to change
		c.beat(t)
		c.pass(t)
	}
	if err := c.operators[0].lookAtServers(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.operators[0].kept.files[old] = &gate.File{Time: time.Now().Add(-48 * time.Hour), Report: reading(time.Now().Add(-48*time.Hour), 1, current, old, 0)}
	return c
}

// hour counts the requests of one round, which is as all others are.
func (c *idle) hour(t *testing.T, name state.Name) (leader, other int) {
	t.Helper()
	const rounds = int(time.Hour / (30 * time.Second))
	c.plugin.mu.Lock()
	if c.plugin.retained = nil; name == state.Retirable {
		c.plugin.retained = []string{c.old}
	}
	c.plugin.mu.Unlock()
	c.calm(time.Now())
	c.beat(t)
	c.pass(t) // it shows the state for the first time
	c.api.set(func() { c.api.requests = 0 })
	c.beat(t)
	other = rounds * c.api.requests / len(c.operators)
	pass := c.measure(t, name)
	leader = other + rounds*pass + int(time.Hour/showEvery)
	if name == state.Retirable {
		c.calm(time.Now().Add(-state.FreshFor - time.Second))
		look := c.measure(t, name) - pass + len(c.operators) - 1 // here one API server answers for all
		leader += int(time.Hour/state.FreshFor) * look
	}
	return leader, other
}

// measure is of a pass.
func (c *idle) measure(t *testing.T, name state.Name) (requests int) {
	t.Helper()
	c.api.set(func() { c.api.requests = 0 })
	if got := c.pass(t); got.State != name {
		t.Fatalf("it is %s: %s", got.State, got.Message)
	}
	return c.api.requests
}

func (c *idle) beat(t *testing.T) {
	t.Helper()
	for _, o := range c.operators {
		o.look(t.Context())
		if err := o.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if leader, err := o.campaign(t.Context(), time.Now()); err != nil || leader != "cp-1" {
			t.Fatalf("%s leads (%v)", leader, err)
		}
	}
}

func (c *idle) pass(t *testing.T) *Status {
	t.Helper()
	status, _ := c.operators[0].pass(t.Context()) // until it is calm, it lacks etcd
	return status
}

// calm has the leader know what it knows after it looked at the API servers.
func (c *idle) calm(looked time.Time) {
	o := c.operators[0]
	clear(o.world.Trouble)
	o.world.Recheck = time.Hour
	o.world.Etcd = &state.Etcd{At: c.read, Key: c.current.ID}
	servers := []string{o.servers[0].Name()}
	o.world.Servers = &state.Servers{At: looked, Names: servers}
	o.world.Proof = &state.Proof{At: c.read.Add(-time.Minute), Key: c.current.ID, Servers: servers}
}
