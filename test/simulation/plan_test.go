package simulation

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pgregory.net/rapid"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// plan is a fleet and what happens to it. All that is random is drawn before it runs, so that a run is the plan's alone
// and a plan that breaks a promise can be made smaller.
type plan struct {
	Setup  setup
	Spread time.Duration // S: no clock that counts is further from another
	Events []event
	Seals  []bool // whether a poll seals without need; used in turns
}

// event is one thing that happens, Gap after the one before.
type event struct {
	Gap   time.Duration
	What  string
	Node  int
	Link  int
	Skew  time.Duration
	In    time.Duration   // rotate: --activate-in
	Lags  []time.Duration // rotate: by token
	Delay time.Duration   // poll: between Status and Encrypt
}

func (e event) String() string {
	return fmt.Sprintf("after %s: %s, node %d, way %d, skew %s, in %s, lags %v, delay %s", e.Gap, e.What, e.Node, e.Link, e.Skew, e.In, e.Lags, e.Delay)
}

// seconds draws a duration.
func seconds(t *rapid.T, label string, from, to time.Duration) time.Duration {
	return time.Duration(rapid.Int64Range(int64(from/time.Second), int64(to/time.Second)).Draw(t, label)) * time.Second
}

// maxSpread is the greatest S under which a key may be withdrawn, less a little for what takes time.
const maxSpread = withdrawMargin - 10*time.Second

// drawPlan draws a plan within the assumptions of the package comment.
var drawPlan = rapid.Custom(func(t *rapid.T) plan {
	p := plan{Spread: seconds(t, "S", 0, maxSpread)}
	for range rapid.IntRange(1, 3).Draw(t, "tokens") {
		latency := rapid.IntRange(0, 90).Draw(t, "latency")
		p.Setup.Latency = append(p.Setup.Latency, time.Duration(latency)*time.Millisecond)
	}
	tokens := make([]int, len(p.Setup.Latency))
	for i := range tokens {
		tokens[i] = i
	}
	for range rapid.IntRange(2, 4).Draw(t, "nodes") {
		order := rapid.Permutation(tokens).Draw(t, "order")
		p.Setup.Nodes = append(p.Setup.Nodes, nodeSetup{
			Tokens:  order[:rapid.IntRange(1, min(2, len(order))).Draw(t, "ways")],
			Skew:    p.skew(t),
			Refresh: seconds(t, "refreshInterval", 5*time.Second, 2*time.Minute),
		})
	}
	for range rapid.IntRange(1, 14).Draw(t, "events") {
		p.Events = append(p.Events, p.event(t))
	}
	p.Seals = rapid.SliceOfN(rapid.Bool(), 1, 7).Draw(t, "seals")
	return p
})

func (p *plan) skew(t *rapid.T) time.Duration {
	return seconds(t, "skew", -p.Spread/2, p.Spread/2)
}

func (p *plan) event(t *rapid.T) event {
	e := event{
		Gap: seconds(t, "gap", 0, 10*time.Minute),
		What: rapid.SampledFrom([]string{
			"rotate", "rotate", "rotate", "withdraw", "withdraw", "withdraw", "clock", "clock far behind", "cut", "join", "stall", "flow",
			"stop", "start", "lose its file", "poll",
		}).Draw(t, "what"),
		Node: rapid.IntRange(0, len(p.Setup.Nodes)-1).Draw(t, "node"),
	}
	e.Link = rapid.IntRange(0, len(p.Setup.Nodes[e.Node].Tokens)-1).Draw(t, "way")
	switch e.What {
	case "rotate":
		least := p.Spread + 2*time.Second
		for _, n := range p.Setup.Nodes {
			least = max(least, 2*n.Refresh+time.Minute)
		}
		more := rapid.SampledFrom([]time.Duration{0, 6 * time.Minute, 15 * time.Minute}).Draw(t, "more") // small numbers come too often
		e.In = least + more + seconds(t, "in", 0, 10*time.Minute)
		for range len(p.Setup.Latency) - 1 {
			e.Lags = append(e.Lags, seconds(t, "lag", 0, e.In-p.Spread-2*time.Second))
		}
	case "clock":
		e.Skew = p.skew(t)
	case "clock far behind":
		e.Skew = -seconds(t, "behind", time.Hour, 40*365*24*time.Hour)
	case "poll":
		e.Delay = seconds(t, "delay", 0, 2*time.Minute)
	}
	return e
}

// play does what the plan says, then repairs all, and tells what was broken.
func (p *plan) play(w *fleet) {
	turn := 0
	seal := func() bool { turn++; return p.Seals[turn%len(p.Seals)] }
	for _, e := range p.Events {
		w.run(e.Gap, seal)
		if w.violated != nil {
			return
		}
		p.happen(w, e)
	}
	w.run(3*time.Minute, seal)
	if w.violated == nil {
		w.repair()
	}
}

func (p *plan) happen(w *fleet, e event) {
	n := w.nodes[e.Node]
	l := n.links[e.Link]
	right := n.clock.skew().Abs() <= p.Spread/2 // else no command runs on it: its clock is far behind
	switch {
	case e.What == "rotate" && right:
		w.rotate(n.clock, e.In, e.Lags)
		return
	case e.What == "withdraw" && right:
		w.withdraw(n)
		return
	case e.What == "poll":
		w.poll(n, e.Delay, true)
		return
	}
	w.note("%s: %s, way %d, skew %s", n.name, e.What, e.Link, e.Skew)
	switch e.What {
	case "clock":
		n.clock.set(e.Skew)
	case "clock far behind":
		n.clock.set(max(e.Skew, time.Until(time.UnixMilli(0))))
	case "cut":
		l.setUp(false)
	case "join":
		l.setUp(true)
	case "stall":
		l.setStalled(true)
	case "flow":
		l.setStalled(false)
	case "stop":
		w.stopNode(n)
	case "start":
		w.restart(n)
	case "lose its file":
		w.stopNode(n)
		_ = os.Remove(filepath.Join(n.state, health.ProvenFile))
		n.latest = envelope.KeyID{}
		w.restart(n)
	}
}

func (w *fleet) stopNode(n *node) {
	if n.stop != nil {
		n.stop()
	}
}

func (w *fleet) restart(n *node) {
	w.stopNode(n)
	if err := w.startNode(n); err != nil {
		w.broken("starting %s: %v", n.name, err)
	}
}

// String is the plan as a failure shows it.
func (p plan) String() string {
	text := fmt.Sprintf("latencies %v, S %s\n", p.Setup.Latency, p.Spread)
	for i, n := range p.Setup.Nodes {
		text += fmt.Sprintf("node %d: %+v\n", i, n)
	}
	for _, e := range p.Events {
		text += e.String() + "\n"
	}
	return text
}
