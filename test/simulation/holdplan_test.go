package simulation

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// holdPlan is what happens to a fleet with outage holds. All that is random is drawn before it runs.
type holdPlan struct{ Events []holdEvent }

// holdEvent is one thing that happens to some nodes, Gap after the one before.
type holdEvent struct {
	Gap   time.Duration
	What  string
	Nodes []int
	Fault fault
	By    time.Duration // clock, suspend
}

func (e holdEvent) String() string {
	return fmt.Sprintf("after %s: %s, nodes %v, %+v, by %s", e.Gap, e.What, e.Nodes, e.Fault, e.By)
}

var drawHoldPlan = rapid.Custom(func(t *rapid.T) (p holdPlan) {
	for range rapid.IntRange(1, 14).Draw(t, "events") {
		e := holdEvent{
			Gap: seconds(t, "gap", 0, 10*time.Minute),
			What: rapid.SampledFrom([]string{
				"cut", "cut", "cut", "back", "back", "brown-out", "clock", "suspend", "restart the plugin", "restart the API server", "restart the API server", "rotate",
			}).Draw(t, "what"),
			Nodes: rapid.SampledFrom([][]int{{0, 1, 2}, {0}, {1}, {2}, {0, 1}}).Draw(t, "nodes"),
		}
		switch e.What {
		case "brown-out":
			e.Fault.slow = time.Duration(rapid.IntRange(0, 4000).Draw(t, "slow")) * time.Millisecond
			e.Fault.fails = rapid.IntRange(0, 9).Draw(t, "fails")
		case "clock":
			e.By = seconds(t, "skew", -11*time.Hour, 11*time.Hour)
		case "suspend":
			e.By = seconds(t, "suspended", time.Minute, 2*time.Hour)
		}
		p.Events = append(p.Events, e)
	}
	return p
})

func (p *holdPlan) play(w *fleet) {
	w.holdRun(2 * time.Minute)
	for _, e := range p.Events {
		w.holdRun(e.Gap)
		if w.violated != nil {
			return
		}
		var nodes []*node
		for _, i := range e.Nodes {
			nodes = append(nodes, w.nodes[i])
		}
		p.happen(w, e, nodes)
	}
	w.holdRun(3 * time.Minute)
	for _, n := range w.nodes {
		n.clock.set(n.stoodStill())
	}
	w.over()
}

func (p *holdPlan) happen(w *fleet, e holdEvent, nodes []*node) {
	switch e.What {
	case "cut":
		w.cut(nodes...)
		return
	case "back":
		w.back(nodes...)
		return
	case "brown-out":
		w.ways(fmt.Sprintf("a brown-out, %+v", e.Fault), func(l *link) { l.setFault(e.Fault) }, nodes...)
		return
	case "rotate":
		w.rotate(w.nodes[0].clock, 15*time.Minute, nil)
		return
	}
	for _, n := range nodes {
		w.note("%s: %s, by %s", n.name, e.What, e.By)
		switch e.What {
		case "clock":
			n.clock.set(n.stoodStill() + e.By)
		case "suspend":
			n.suspend(e.By)
			time.Sleep(2 * time.Second) // until the time is counted in stateDir
		case "restart the plugin":
			w.restart(n)
		case "restart the API server":
			w.restartAPIServer(n)
		}
	}
}

// TestHoldPromises: whatever happens to nodes with a hold, what is promised of it holds.
func TestHoldPromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		p := drawHoldPlan.Draw(rt, "plan")
		story, violated := inBubble(t, holdFleet(24*time.Hour), p.play)
		if violated != nil {
			rt.Fatalf("%v\n%s", violated, story)
		}
	})
}
