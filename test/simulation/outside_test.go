package simulation

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// never is what run takes for polls that seal only when the key_id is new.
func never() bool { return false }

// twoNodes are two nodes with a token each.
func twoNodes() setup {
	return setup{
		Latency: []time.Duration{5 * time.Millisecond, 7 * time.Millisecond},
		Nodes:   []nodeSetup{{Tokens: []int{0}, Refresh: 30 * time.Second}, {Tokens: []int{1}, Refresh: 30 * time.Second}},
	}
}

// tell runs a story that is no random one.
func tell(t *testing.T, s setup, story func(*testing.T, *fleet)) {
	t.Helper()
	trace, violated := inBubble(t, s, func(w *fleet) {
		w.run(2*time.Minute, never)
		story(t, w)
	})
	if violated != nil {
		t.Error(violated)
	}
	if t.Failed() {
		t.Log("\n" + trace)
	}
}

// sealedBy seals without asking anybody else to open it.
func (w *fleet) sealedBy(t *testing.T, n *node) object {
	t.Helper()
	answer, err := n.encrypt([]byte("DEK"))
	if err != nil {
		t.Fatalf("%s: %v", n.name, err)
	}
	o := object{answer.KeyId, answer.Ciphertext, "DEK", n.name, time.Now()}
	w.objects = append(w.objects, o)
	return o
}

func names(t *testing.T, n *node, k *key, healthz string) {
	t.Helper()
	if answer, err := n.status(); err != nil || answer.KeyId != k.ID.String() || answer.Healthz != healthz {
		t.Errorf("%s: Status says %v, %v; want %s and %q", n.name, answer, err, k.ID, healthz)
	}
}

// lacks wants the NotFound that says which key is asked for, and which there is.
func lacks(t *testing.T, n *node, o object, held *key) {
	t.Helper()
	_, err := n.open(o)
	text := status.Convert(err).Message()
	if status.Code(err) != codes.NotFound || !strings.Contains(text, o.keyID) || !strings.Contains(text, held.ID.String()) {
		t.Errorf("%s opens %s: %v; want NotFound that names both keys", n.name, o, err)
	}
}

func opens(t *testing.T, n *node, o object) {
	t.Helper()
	if dek, err := n.open(o); err != nil || string(dek) != o.dek {
		t.Errorf("%s opens %s: %q, %v", n.name, o, dek, err)
	}
}

// TestOutsideTheCopyIsLate (L > D - S): the node without the copy stays with the predecessor and is well; what the other one
// seals it does not have, says so, and opens when the copy is there.
func TestOutsideTheCopyIsLate(t *testing.T) {
	t.Parallel()
	tell(t, twoNodes(), func(t *testing.T, w *fleet) {
		first, a, b := w.keys[0], w.nodes[0], w.nodes[1]
		next := w.rotate(a.clock, 3*time.Minute, []time.Duration{-1})
		time.Sleep(4 * time.Minute)
		names(t, a, next, "ok")
		names(t, b, first, "ok")
		o := w.sealedBy(t, a)
		lacks(t, b, o, first)
		opens(t, a, w.sealedBy(t, b)) // the other way round nothing is amiss
		w.tokens[1].add(next)
		time.Sleep(2 * time.Second)
		opens(t, b, o)
		names(t, b, first, "ok") // told by a Decrypt, and not yet probed
		time.Sleep(time.Minute)
		names(t, b, next, "ok")
		w.repair()
	})
}

// TestOutsideAClockFarAhead (S > D - L): the node whose clock is ahead seals under the new key at once. Who lacks it says so;
// who has it follows, since a key that somebody sealed under has been activated.
func TestOutsideAClockFarAhead(t *testing.T) {
	t.Parallel()
	s := twoNodes()
	s.Nodes = append(s.Nodes, nodeSetup{Tokens: []int{0}, Refresh: 30 * time.Second})
	tell(t, s, func(t *testing.T, w *fleet) {
		first, a, b, ahead := w.keys[0], w.nodes[0], w.nodes[1], w.nodes[2]
		ahead.clock.set(time.Hour)
		next := w.rotate(a.clock, 15*time.Minute, []time.Duration{2 * time.Minute})
		time.Sleep(time.Minute)
		names(t, ahead, next, "ok")
		names(t, a, first, "ok")
		o := w.sealedBy(t, ahead)
		lacks(t, b, o, first)
		opens(t, a, o)
		time.Sleep(time.Minute)
		names(t, a, next, "ok")
		w.arrive()
		opens(t, b, o)
		time.Sleep(time.Minute)
		names(t, b, next, "ok")
		ahead.clock.set(0) // a clock that is put right takes nothing back
		time.Sleep(time.Minute)
		names(t, ahead, next, "ok")
		w.repair()
	})
}

// TestOutsideAnOutageAtTheActivation: the key_id stays, not ok, and the activation is made up for when the token is back.
func TestOutsideAnOutageAtTheActivation(t *testing.T) {
	t.Parallel()
	tell(t, twoNodes(), func(t *testing.T, w *fleet) {
		first, a := w.keys[0], w.nodes[0]
		next := w.rotate(a.clock, 10*time.Minute, []time.Duration{time.Minute})
		time.Sleep(2 * time.Minute)
		w.arrive()
		time.Sleep(6 * time.Minute)
		a.links[0].setUp(false)
		time.Sleep(5 * time.Minute)
		names(t, a, first, "the HSM is unavailable")
		names(t, w.nodes[1], next, "ok")
		a.links[0].setUp(true)
		time.Sleep(time.Minute)
		names(t, a, next, "ok")
		opens(t, a, w.sealedBy(t, w.nodes[1]))
		w.repair()
	})
}

// TestOutsideFailoverToATokenWithoutTheKey: an emergency key became current on the one token that can be reached. With only
// the one that the copy never reached, the node stops writes rather than go back, and is well again with the copy.
func TestOutsideFailoverToATokenWithoutTheKey(t *testing.T) {
	t.Parallel()
	s := twoNodes()
	s.Nodes[0].Tokens = []int{0, 1}
	tell(t, s, func(t *testing.T, w *fleet) {
		n := w.nodes[0]
		n.links[1].setUp(false)
		next := w.rotateTo(envelope.NewEmergencyCKAID, n.clock, 3*time.Minute, []time.Duration{-1})
		time.Sleep(4 * time.Minute)
		names(t, n, next, "ok")
		o := w.sealedBy(t, n)
		n.links[1].setUp(true)
		n.links[0].setUp(false)
		time.Sleep(2 * time.Minute)
		if answer, err := n.status(); err == nil && answer.Healthz == "ok" {
			t.Errorf("Status says %v while no token that can be reached holds the current key", answer)
		}
		if answer, err := n.encrypt([]byte("DEK")); err == nil {
			t.Errorf("it sealed under %s", answer.KeyId)
		}
		w.tokens[1].add(next)
		time.Sleep(2 * time.Minute)
		names(t, n, next, "ok")
		opens(t, n, o)
		w.repair()
	})
}

// TestOutsideTheBoundOfWithdrawal (S >= M) shows why the clocks must agree to within five minutes when a pending key is
// withdrawn, and that this is the bound: at less, the command refuses what the fast node has sealed under.
func TestOutsideTheBoundOfWithdrawal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		ahead time.Duration
		lost  bool
	}{
		{"within", withdrawMargin - 2*time.Second, false},
		{"outside", withdrawMargin + 30*time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tell(t, twoNodes(), func(t *testing.T, w *fleet) {
				a, fast := w.nodes[0], w.nodes[1]
				fast.clock.set(test.ahead)
				next := w.rotate(a.clock, 15*time.Minute, []time.Duration{0})
				w.arrive()
				time.Sleep(time.Until(next.Activation.Add(-test.ahead)) + 100*time.Millisecond) // a probe at its instant, two operations
				names(t, fast, next, "ok")
				o := w.sealedBy(t, fast)
				if withdrawn := w.withdraw(a) != nil; withdrawn != test.lost {
					t.Errorf("withdrawn: %v, want %v", withdrawn, test.lost)
				}
				if !test.lost {
					opens(t, a, o)
					w.repair()
					return
				}
				lacks(t, a, o, w.keys[0])
				w.violated = nil // destroy noted it: that is what this case is about
			})
		})
	}
}

// TestOutsideACommandFarBehind: to a command whose clock is behind, and whose machine has no plugin that knows better, a
// key that is in use looks pending. With the file of a plugin it does not.
func TestOutsideACommandFarBehind(t *testing.T) {
	t.Parallel()
	tell(t, twoNodes(), func(t *testing.T, w *fleet) {
		a := w.nodes[0]
		next := w.rotate(a.clock, 10*time.Minute, []time.Duration{0})
		w.run(12*time.Minute, never)
		names(t, a, next, "ok")
		a.clock.set(-24 * time.Hour)
		if w.withdraw(a) != nil {
			t.Error("a command beside a plugin that knows the key to be current withdrew it")
		}
		w.repair()
	})
}
