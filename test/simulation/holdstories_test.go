package simulation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// holdFleet is three nodes at one token, with an outage hold.
func holdFleet(limit time.Duration) setup {
	s := setup{Latency: []time.Duration{5 * time.Millisecond}, Hold: limit}
	for range 3 {
		s.Nodes = append(s.Nodes, nodeSetup{Tokens: []int{0}, Refresh: 30 * time.Second})
	}
	return s
}

// tellHold runs a story of a fleet in which every node has written, and is armed.
func tellHold(t *testing.T, s setup, story func(*fleet)) {
	t.Helper()
	trace, violated := inBubble(t, s, func(w *fleet) {
		w.holdRun(4 * time.Minute)
		w.armed(w.nodes...)
		if w.violated == nil {
			story(w)
		}
		w.over()
	})
	if violated != nil {
		t.Errorf("%v\n%s", violated, trace)
	}
}

// TestHoldOutage: the HSM is away for two hours. All API servers restart, one plugin does, and the others read and write all the
// time. When it is back, nothing is written under a hold any more.
func TestHoldOutage(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
		w.cut(w.nodes...)
		w.holdRun(5 * time.Minute)
		w.restart(w.nodes[2])
		for range 4 {
			w.holdRun(10 * time.Minute)
			for _, n := range w.nodes {
				w.restartAPIServer(n)
			}
		}
		w.holdRun(75 * time.Minute)
		for _, n := range w.nodes[:2] {
			if !n.saysOK() || !isHold(n.named) {
				w.broken("%s does not live on its hold: it names %s", n.name, tail(n.named))
			}
		}
		if w.nodes[2].saysOK() {
			w.broken("a plugin that restarted without the HSM says ok")
		}
		w.back(w.nodes...)
		w.holdRun(2 * time.Minute)
		for _, n := range w.nodes {
			if !n.saysOK() || isHold(n.named) {
				w.broken("two minutes after the HSM is back %s names %s", n.name, tail(n.named))
			}
		}
	})
}

// TestHoldMidnight: nodes that lost the HSM on different days open what the others write, with and without the HSM.
func TestHoldMidnight(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	s := holdFleet(24 * time.Hour)
	for i := range s.Nodes {
		s.Nodes[i].Skew = 23*time.Hour + 30*time.Minute
	}
	tellHold(t, s, func(w *fleet) {
		w.cut(w.nodes[0])
		w.holdRun(time.Minute)
		w.restartAPIServer(w.nodes[0]) // it writes under the day before
		w.holdRun(40 * time.Minute)
		w.cut(w.nodes[1]) // after midnight
		w.holdRun(5 * time.Minute)
		w.restartAPIServer(w.nodes[1])
		w.holdRun(5 * time.Minute)
		w.cut(w.nodes[2])
		w.holdRun(10 * time.Minute)
		for _, n := range w.nodes {
			w.restartAPIServer(n)
		}
	})
}

// TestHoldOfOneNode: one node has lost the HSM, and the others have it. What they write it cannot open, and says so.
func TestHoldOfOneNode(t *testing.T) {
	t.Parallel()
	tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
		alone := w.nodes[0]
		w.cut(alone)
		w.holdPoll(alone, true)
		if !alone.saysOK() || !isHold(alone.named) {
			w.broken("%s does not live on its hold", alone.name)
		}
		w.holdPoll(w.nodes[1], true)
		if alone.saysOK() {
			w.broken("%s could not open what another wrote, and says ok", alone.name)
		}
		if named, err := alone.status(); err != nil || named.KeyId == "" {
			w.broken("%s keeps no key_id: %v, %v", alone.name, named, err)
		}
		w.holdRun(10 * time.Minute)
	})
}

// TestHoldLimit: at most outageHold within seven days, also of a machine that was suspended, and of a plugin that restarted.
func TestHoldLimit(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"one plugin": false, "with restarts": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := holdFleet(time.Hour)
			s.Nodes = s.Nodes[:1]
			tellHold(t, s, func(w *fleet) {
				n := w.nodes[0]
				w.cut(n)
				w.holdRun(10 * time.Minute)
				n.suspend(40 * time.Minute)
				time.Sleep(2 * time.Second) // until the time is counted in stateDir
				w.mustLive(n, true)
				w.holdRun(11 * time.Minute)
				w.mustLive(n, false)
				w.back(n)
				w.holdRun(2 * time.Minute)
				if restart {
					w.restart(n)
					w.holdRun(2 * time.Minute)
				}
				w.cut(n)
				w.holdRun(2 * time.Minute)
				w.mustLive(n, false) // all is used up
				w.back(n)
				n.suspend(7 * 24 * time.Hour)
				w.holdRun(2 * time.Minute)
				w.armed(n)
				w.cut(n)
				w.holdRun(2 * time.Minute)
				w.mustLive(n, true)
			})
		})
	}
}

// mustLive wants a node without the HSM to live on its hold, or not.
func (w *fleet) mustLive(n *node, lives bool) {
	if w.violated != nil {
		return
	}
	_, err := n.open(w.objects[0])
	if ok := n.saysOK(); ok != lives || (err == nil) != lives {
		w.broken("%s lives on its hold: %t (Decrypt: %v), wanted %t", n.name, ok, err, lives)
	}
}

// TestHoldIsWiped: a key that is gone and a PIN that is refused end the hold, and nothing is opened any more.
func TestHoldIsWiped(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]bool{"HSM there": false, "after an outage": true} {
		for what, end := range map[string]func(*fleet, *node){
			"key gone": func(w *fleet, n *node) { w.back(n) },
			"refused": func(w *fleet, n *node) {
				w.ways("the PIN is refused", func(l *link) { l.refuse(envelope.ErrPINRefused) }, n)
			},
			"expired": func(w *fleet, n *node) {
				w.ways("the PIN has expired", func(l *link) { l.refuse(envelope.ErrPINExpired) }, n)
			},
		} {
			t.Run(fmt.Sprintf("%s, %s", what, name), func(t *testing.T) {
				t.Parallel()
				s := holdFleet(24 * time.Hour)
				s.Nodes = s.Nodes[:1]
				tellHold(t, s, func(w *fleet) {
					n := w.nodes[0]
					if away {
						w.cut(n)
						w.holdRun(5 * time.Minute)
						w.mustLive(n, true)
					}
					if what == "key gone" {
						w.tokens[0].remove(w.keys[0].ID)
					}
					end(w, n)
					time.Sleep(90 * time.Second)
					if held := n.hold.State().Held; held > 0 {
						w.broken("%s still holds %d DEKs", n.name, held)
					}
					w.mustLive(n, false)
					w.cut(n)
					time.Sleep(time.Minute)
					w.mustLive(n, false)
				})
			})
		}
	}
}

// TestHoldOfAKeyThatIsGone: what is under one key that is gone is not opened, and the rest is.
func TestHoldOfAKeyThatIsGone(t *testing.T) {
	t.Parallel()
	tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
		n, old := w.nodes[0], w.objects[0]
		w.rotate(n.clock, 3*time.Minute, nil)
		w.holdRun(5 * time.Minute)
		w.tokens[0].remove(w.keys[0].ID)
		time.Sleep(time.Minute)
		w.cut(w.nodes...)
		w.holdRun(time.Minute)
		for _, o := range w.objects {
			_, err := n.open(o)
			if gone := o.keyID == old.keyID; gone != (err != nil) {
				w.broken("%s opens %s: %v", n.name, o, err)
			}
		}
	})
}

// TestHoldDrop: what is dropped is not opened any more, and a seed brings it back when the HSM is there.
func TestHoldDrop(t *testing.T) {
	t.Parallel()
	tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
		n := w.nodes[0]
		w.cut(n)
		w.holdRun(time.Minute)
		w.mustLive(n, true)
		if err := holdfile.SaveDrop(n.state, holdfile.Drop{ID: holdfile.NewID()}); err != nil {
			w.broken("%v", err)
		}
		time.Sleep(2 * time.Second)
		w.mustLive(n, false)
		w.back(n)
		time.Sleep(time.Minute)
		w.cut(n)
		time.Sleep(time.Minute)
		w.mustLive(n, false)
		w.back(n)
		seed := holdfile.Seed{ID: holdfile.NewID()}
		for _, o := range w.objects {
			seed.Entries = append(seed.Entries, holdfile.Entry{KeyID: o.keyID, Envelope: o.ciphertext})
		}
		if err := holdfile.SaveSeed(n.state, seed); err != nil {
			w.broken("%v", err)
		}
		time.Sleep(time.Minute)
		w.armed(n)
		w.cut(n)
		time.Sleep(time.Minute)
		w.mustLive(n, true)
		w.restartAPIServer(n)
	})
}

// TestHoldBrownOut: an HSM that is slow, that fails at times, and that comes and goes. Every request is answered in time, and a
// hold ends only after the HSM has been good for a while.
func TestHoldBrownOut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault fault
		flaps bool
	}{
		"0.5 s": {fault: fault{slow: 500 * time.Millisecond}}, "1.2 s": {fault: fault{slow: 1200 * time.Millisecond}},
		"2.5 s": {fault: fault{slow: 2500 * time.Millisecond}}, "hangs": {fault: fault{slow: time.Minute}}, "30 % errors": {fault: fault{fails: 3}},
		"30 s up and down": {flaps: true}, "10 s up and down": {flaps: true},
	} {
		if testing.Short() && strings.HasSuffix(name, "up and down") {
			continue // make test runs it
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
				ids := w.nodes
				for range 4 {
					switch {
					case !c.flaps:
						w.ways(name, func(l *link) { l.setFault(c.fault) }, ids...)
						w.sealEach(time.Second) // before a probe has found out
						w.holdRun(time.Minute)
					default:
						period := 30 * time.Second
						if name[0] == '1' {
							period = 10 * time.Second
						}
						for range time.Minute / (2 * period) {
							w.cut(ids...)
							w.sealEach(period)
							w.back(ids...)
							w.sealEach(period)
						}
					}
				}
				if name == "10 s up and down" { // too short for an end
					for _, n := range ids {
						if began := n.times(hold.EventBegan); began != 1 {
							w.broken("%s: %d holds began", n.name, began)
						}
					}
				}
			})
		})
	}
}

// sealEach lets d pass, and has each node write every few seconds.
func (w *fleet) sealEach(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end) && w.violated == nil; time.Sleep(3 * time.Second) {
		for _, n := range w.nodes {
			w.holdPoll(n, true)
		}
	}
}

// TestHoldThatIsNotFull: a node that has not opened all of its list again is not armed, and an API server there is told before it
// reads.
func TestHoldThatIsNotFull(t *testing.T) {
	t.Parallel()
	tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
		n := w.nodes[0]
		for range 100 {
			w.holdPoll(n, true)
		}
		w.ways("slow", func(l *link) { l.setFault(fault{slow: 600 * time.Millisecond}) }, n)
		w.restart(n)
		for end := time.Now().Add(time.Minute); !strings.HasSuffix(n.hold.State().Why, " are not held"); time.Sleep(time.Second) {
			if time.Now().After(end) {
				w.broken("%s has all at once, or nothing: %+v", n.name, n.hold.State())
				return
			}
		}
		w.cut(n)
		time.Sleep(35 * time.Second) // until a probe has found out
		w.restartAPIServer(n)
		w.holdRun(3 * time.Minute)
	})
}

// TestHoldAndRotation: no key becomes current on a node on hold, and it follows when the HSM is back.
func TestHoldAndRotation(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	tellHold(t, holdFleet(24*time.Hour), func(w *fleet) {
		n := w.nodes[0]
		w.rotate(n.clock, 10*time.Minute, nil)
		w.holdRun(5 * time.Minute)
		w.armed(w.nodes...)
		w.cut(w.nodes...)
		w.holdRun(20 * time.Minute)
		for range 6 { // a good probe now and then changes nothing
			w.back(w.nodes...)
			w.sealEach(10 * time.Second)
			w.cut(w.nodes...)
			w.sealEach(10 * time.Second)
			for _, n := range w.nodes {
				if !n.saysOK() || n.named != w.keys[0].ID.HoldString() {
					w.broken("%s on hold names %s", n.name, tail(n.named))
				}
			}
		}
	})
}
