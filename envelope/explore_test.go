package envelope

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The explorer does to the real ring what a walk does at random, in all orders up to a number of events: one rotation, on two
// tokens that lose and get keys, connections and time.

// event is one thing that may happen; false: it cannot happen now.
type event struct {
	name string
	do   func(w *walk, t teller) bool
}

// flaw is how a ring is broken on purpose; the zero one: it is not.
type flaw struct {
	forgets bool // a restart does not know the floor
	hurries bool // an absent token is not waited for
}

func eventsOf(first, next softKey, b flaw) []event {
	events := []event{
		{"refresh", func(w *walk, t teller) bool { w.clock.move(time.Second); _ = w.ring.Refresh(t.Context()); return true }},
		{"exercise", func(w *walk, t teller) bool { w.exercise(t); return true }},
		{"20 minutes", func(w *walk, _ teller) bool { w.clock.move(20 * time.Minute); return true }},
		{"an hour back", func(w *walk, _ teller) bool { w.clock.move(-time.Hour); return true }},
		{"restart", func(w *walk, _ teller) bool {
			floor := w.ring.Floor()
			if b.forgets {
				floor = KeyID{}
			}
			w.start(floor)
			return true
		}},
		{"another node writes", func(w *walk, t teller) bool {
			if w.sealed[next.ID] != nil {
				return false
			}
			w.sealElsewhere(t, next)
			return true
		}},
		{"open", func(w *walk, t teller) bool {
			if w.sealed[next.ID] == nil {
				return false
			}
			w.open(t, next.ID)
			return true
		}},
	}
	return append(events, tokenEvents(first, next)...)
}

// tokenEvents are about what each token holds, and whether it can be reached.
func tokenEvents(first, next softKey) (events []event) {
	for i, name := range []string{"a", "b"} {
		events = append(events,
			event{"next to " + name, func(w *walk, _ teller) bool {
				if holds(w.tokens[i], next.ID) {
					return false
				}
				w.put(w.tokens[i], next)
				return true
			}},
			event{"next off " + name, func(w *walk, _ teller) bool {
				if !holds(w.tokens[i], next.ID) {
					return false
				}
				w.tokens[i].remove(next.ID)
				return true
			}},
			event{"first off " + name, func(w *walk, _ teller) bool {
				if !holds(w.tokens[i], first.ID) {
					return false
				}
				w.tokens[i].remove(first.ID)
				return true
			}},
			event{name + " away", func(w *walk, _ teller) bool {
				if w.tokens[i].Generation() == 0 {
					return false
				}
				w.tokens[i].connect(0)
				return true
			}},
			event{name + " back", func(w *walk, _ teller) bool {
				if w.tokens[i].Generation() != 0 {
					return false
				}
				w.comeBack(w.tokens[i])
				return true
			}})
	}
	return events
}

func holds(token *softToken, id KeyID) bool { _, held := token.held[id]; return held }

// found is what an exploration found to be wrong.
type found struct{ text string }

// thrower is a teller that ends what is done.
type thrower struct{ ctx context.Context } //nolint:containedctx // as a test has one

func (t thrower) Context() context.Context { return t.ctx }

func (t thrower) Fatalf(format string, args ...any) { panic(found{fmt.Sprintf(format, args...)}) }

// explore does every order of so many events, from a ring of one key on both tokens, one whose next key waits for its time,
// and one whose next key is on one token alone. It returns how many there were, and what was wrong after which events.
func explore(ctx context.Context, depth int, b flaw) (orders int, wrong string) {
	first, next := keyAt(noon.Add(-time.Hour), "first"), keyAt(noon.Add(10*time.Minute), "next")
	events := eventsOf(first, next, b)
	for _, beginning := range [][2][]softKey{{{first}, {first}}, {{first, next}, {first, next}}, {{first, next}, {first}}} {
		order := make([]int, depth)
		for {
			orders++
			cannot, text := try(ctx, beginning, events, order, b)
			if text != "" {
				return orders, text
			}
			// The next order. Of those that begin with what cannot happen, one is enough.
			at := min(cannot, depth-1)
			for i := at + 1; i < depth; i++ {
				order[i] = 0
			}
			for order[at]++; order[at] == len(events); order[at]++ {
				order[at] = 0
				if at--; at < 0 {
					break
				}
			}
			if at < 0 {
				break
			}
		}
	}
	return orders, ""
}

// try does one order. cannot is the place of the first event that cannot happen, or how many there are.
func try(ctx context.Context, beginning [2][]softKey, events []event, order []int, b flaw) (cannot int, wrong string) {
	t, w := thrower{ctx}, newWalk()
	if b.hurries {
		w.grace, w.patience = 0, 0
		w.start(KeyID{})
	}
	var path []string
	defer func() {
		if is, ok := recover().(found); ok {
			wrong = strings.Join(path, ", ") + ": " + is.text
		}
	}()
	for i, keys := range beginning {
		for _, k := range keys {
			w.put(w.tokens[i], k)
		}
	}
	_ = w.ring.Refresh(ctx)
	w.exercise(t)
	w.check(t)
	for i, event := range order {
		path = append(path, events[event].name)
		if !events[event].do(w, t) {
			return i, ""
		}
		w.check(t)
	}
	return len(order), ""
}

// TestExploreTheRing: in all orders of three events, or of as many as HSM_KMS_EXPLORE says, with two keys and two tokens, no
// older key becomes current again, and none becomes current before it is proven where it must be.
func TestExploreTheRing(t *testing.T) {
	t.Parallel()
	depth := 3
	if testing.Short() {
		depth = 2 // make test goes further
	}
	if n, err := strconv.Atoi(os.Getenv("HSM_KMS_EXPLORE")); err == nil {
		depth = n
	}
	orders, wrong := explore(t.Context(), depth, flaw{})
	if wrong != "" {
		t.Error(wrong)
	}
	t.Logf("%d orders of %d events", orders, depth)
}

// TestExploreBrokenRings: the explorer finds what is wrong with a ring that forgets, or does not wait.
func TestExploreBrokenRings(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]flaw{"forgets": {forgets: true}, "hurries": {hurries: true}} {
		wrong := ""
		for depth := 1; wrong == "" && depth <= 3; depth++ { // the fewest events show it best, and are found first
			_, wrong = explore(t.Context(), depth, b)
		}
		if wrong == "" {
			t.Errorf("a ring that %s: nothing was found", name)
		} else {
			t.Logf("a ring that %s: %s", name, wrong)
		}
	}
}
