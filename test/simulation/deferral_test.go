package simulation

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// allowed follows what each node may name by promise 4. It gets the state of the fleet at every step and after every event.
type allowed struct {
	w    *fleet
	held map[*link]map[envelope.KeyID]bool // what a token has held while this process of the node could reach it
	ever map[*node]map[envelope.KeyID]bool // what the node might have named at some time
}

func newAllowed(w *fleet) *allowed {
	a := &allowed{w: w, held: map[*link]map[envelope.KeyID]bool{}, ever: map[*node]map[envelope.KeyID]bool{}}
	for _, n := range w.nodes {
		a.ever[n] = map[envelope.KeyID]bool{w.keys[0].ID: true}
		a.forget(n)
	}
	return a
}

// forget is a restart of the node's plugin: what its process has seen is gone.
func (a *allowed) forget(n *node) {
	for _, l := range n.links {
		a.held[l] = map[envelope.KeyID]bool{}
	}
}

func (a *allowed) step() {
	for _, n := range a.w.nodes {
		for _, l := range n.links {
			for id := range l.hsm.list() {
				if l.Generation() != 0 {
					a.held[l][id] = true
				}
			}
		}
		for _, k := range a.w.keys {
			if a.may(n, k) {
				a.ever[n][k.ID] = true
			}
		}
	}
}

// may is the first half of promise 4 at this moment, and generous: what a token once held counts.
func (a *allowed) may(n *node, k *key) bool {
	if time.Now().Before(k.Activation) {
		return false
	}
	one := false
	for _, l := range n.links {
		up := l.Generation() != 0
		has := l.hsm.get(k.ID) != nil
		one = one || up && has
		if k.ID.Emergency() || up && has || !up && a.held[l][k.ID] {
			continue
		}
		if up || !a.absent(n, l) || time.Now().Before(k.Activation.Add(deferGrace)) {
			return false
		}
	}
	return one
}

// absent is generous by a minute: the ring looks whether a token is there with each probe, and not all the time.
func (a *allowed) absent(n *node, l *link) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	const least = absentAfter - time.Minute
	return time.Since(l.changed) >= least && time.Since(n.started) >= least
}

// must is the second half, and strict: nothing has changed for longer than a node needs to see it.
func (a *allowed) must(n *node, k *key) bool {
	const settled = absentAfter + 2*time.Minute
	if time.Since(k.Activation) < settled || time.Since(n.started) < settled || n.stop == nil {
		return false
	}
	one := false
	for _, l := range n.links {
		l.mu.Lock()
		up, since := l.generation != 0, time.Since(l.changed)
		_, known := l.known[k.ID]
		l.mu.Unlock()
		if since < settled {
			return false
		}
		one = one || up && known
		if !k.ID.Emergency() && !(up && known) && (up || time.Since(k.Activation.Add(deferGrace)) < settled) {
			return false
		}
	}
	return one
}

// check is one Status of each node.
func (a *allowed) check() {
	for _, n := range a.w.nodes {
		if n.stop == nil {
			continue
		}
		answer, err := n.status()
		if err != nil || answer.KeyId == "" {
			continue
		}
		id, err := envelope.ParseKeyID(answer.KeyId)
		if err != nil {
			a.w.broken("%s: Status names %q: %v", n.name, answer.KeyId, err)
			return
		}
		if id != n.latest {
			a.w.note("%s: Status names %s, %s", n.name, short(answer.KeyId), answer.Healthz)
		}
		n.latest = id
		if !a.ever[n][id] {
			a.w.broken("%s names %s, which a token of it lacks", n.name, id)
		}
		for _, k := range a.w.keys {
			if older(id, k.ID) && a.must(n, k) {
				a.w.broken("%s names %s, although nothing keeps it from %s", n.name, short(answer.KeyId), k.ID)
			}
		}
	}
}

// pass lets time pass, with copies that arrive and API servers that poll.
func (a *allowed) pass(d time.Duration) {
	const step = 5 * time.Second
	for end := time.Now().Add(d); time.Now().Before(end) && a.w.violated == nil; {
		time.Sleep(min(step, time.Until(end)))
		a.w.arrive()
		a.step()
		if int(time.Since(a.w.start)/step)%12 == 0 {
			a.check()
		}
	}
}

// drawDeferral draws a fleet with right clocks, whose copies come when they come, if they do.
func drawDeferral(t *rapid.T) setup {
	s := setup{Latency: []time.Duration{5 * time.Millisecond, 7 * time.Millisecond, 11 * time.Millisecond}}
	for range 3 {
		order := rapid.Permutation([]int{0, 1, 2}).Draw(t, "order")
		s.Nodes = append(s.Nodes, nodeSetup{Tokens: order[:rapid.IntRange(1, 3).Draw(t, "tokens")], Refresh: 30 * time.Second})
	}
	return s
}

// deferralEvent is one thing that happens.
type deferralEvent struct {
	Gap        time.Duration
	What       string
	Node, Link int
	In         time.Duration
	Lags       []time.Duration
}

func drawDeferralEvent(s setup) *rapid.Generator[deferralEvent] {
	return rapid.Custom(func(t *rapid.T) deferralEvent {
		e := deferralEvent{
			Gap:  rapid.SampledFrom([]time.Duration{5 * time.Second, time.Minute, 9 * time.Minute, 40 * time.Minute, 80 * time.Minute}).Draw(t, "gap"),
			What: rapid.SampledFrom([]string{"rotate", "rotate", "emergency", "cut", "cut", "join", "blink", "restart"}).Draw(t, "what"),
			Node: rapid.IntRange(0, len(s.Nodes)-1).Draw(t, "node"),
			In:   seconds(t, "in", time.Minute, 20*time.Minute),
		}
		e.Link = rapid.IntRange(0, len(s.Nodes[e.Node].Tokens)-1).Draw(t, "way")
		for range 2 {
			e.Lags = append(e.Lags, rapid.SampledFrom([]time.Duration{-1, -1, time.Second, 10 * time.Minute, 50 * time.Minute, 2 * time.Hour}).Draw(t, "lag"))
		}
		return e
	})
}

func (a *allowed) happen(e deferralEvent) {
	n := a.w.nodes[e.Node]
	l := n.links[e.Link]
	a.w.note("%s: %s, way %d", n.name, e.What, e.Link)
	switch e.What {
	case "rotate":
		a.w.rotate(n.clock, e.In, e.Lags)
	case "emergency":
		a.w.rotateTo(envelope.NewEmergencyCKAID, n.clock, e.In, e.Lags)
	case "cut":
		l.setUp(false)
	case "join":
		l.setUp(true)
	case "blink": // a token that is away for five seconds
		l.setUp(false)
		a.step()
		time.Sleep(5 * time.Second)
		a.step()
		l.setUp(true)
	case "restart":
		a.forget(n)
		a.w.restart(n)
	}
	a.step()
}

// TestDeferral: with copies that come late or never, ways that come and go, and restarts, promise 4 holds on all nodes.
func TestDeferral(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := drawDeferral(rt)
		events := rapid.SliceOfN(drawDeferralEvent(s), 1, 12).Draw(rt, "events")
		story, violated := inBubble(t, s, func(w *fleet) {
			a := newAllowed(w)
			a.pass(2 * time.Minute)
			for _, e := range events {
				a.pass(e.Gap)
				if w.violated != nil {
					return
				}
				a.happen(e)
			}
			a.pass(3 * time.Hour) // all graces end
		})
		if violated != nil {
			rt.Fatalf("%v\n%s", violated, story)
		}
	})
}

// TestDeferredOnNodesThatSeeDifferentTokens: the key is on one of two tokens. Who can reach the other waits without limit, who
// cannot until the end of the grace, and all of those at one instant, restarted in between or not.
func TestDeferredOnNodesThatSeeDifferentTokens(t *testing.T) {
	t.Parallel()
	s := setup{Latency: []time.Duration{5 * time.Millisecond, 7 * time.Millisecond}}
	for range 3 {
		s.Nodes = append(s.Nodes, nodeSetup{Tokens: []int{0, 1}, Refresh: 30 * time.Second})
	}
	tell(t, s, func(t *testing.T, w *fleet) {
		first, sees, blind, restarted := w.keys[0], w.nodes[0], w.nodes[1], w.nodes[2]
		blind.links[1].setUp(false)
		restarted.links[1].setUp(false)
		next := w.rotate(sees.clock, 10*time.Minute, []time.Duration{-1})
		time.Sleep(30 * time.Minute)
		w.restart(restarted)
		end := next.Activation.Add(deferGrace)
		time.Sleep(time.Until(end.Add(-time.Second)))
		for _, n := range w.nodes {
			names(t, n, first, "ok")
		}
		time.Sleep(time.Until(end.Add(100 * time.Millisecond)))
		names(t, sees, first, "ok")
		names(t, blind, next, "ok")
		names(t, restarted, next, "ok")
		o := w.sealedBy(t, blind)
		sees.links[1].setUp(false) // for a moment
		time.Sleep(5 * time.Second)
		names(t, sees, first, "ok")
		sees.links[1].setUp(true)
		time.Sleep(time.Hour)
		names(t, sees, first, "ok")
		opens(t, sees, o) // another node has begun to write under it: so does this one
		time.Sleep(time.Minute)
		names(t, sees, next, "ok")
		w.repair()
	})
}

// TestTheModelOfDeferralSeesFaults: with nodes that make every key current as soon as they see it, promise 4 does not hold.
func TestTheModelOfDeferralSeesFaults(t *testing.T) {
	t.Parallel()
	s := twoNodes()
	s.Eager = true
	s.Nodes[0].Tokens = []int{0, 1}
	_, violated := inBubble(t, s, func(w *fleet) {
		a := newAllowed(w)
		a.pass(time.Minute)
		a.happen(deferralEvent{What: "rotate", In: 15 * time.Minute, Lags: []time.Duration{time.Second}})
		a.pass(5 * time.Minute)
	})
	if violated == nil {
		t.Error("it saw nothing")
	}
}
