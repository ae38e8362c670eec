package simulation

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// nodeSetup and setup say what a fleet begins with.
type nodeSetup struct {
	Tokens  []int         // in order of preference
	Skew    time.Duration // of its clock
	Refresh time.Duration
}

type setup struct {
	Latency []time.Duration // of each token: as many as there are tokens
	Nodes   []nodeSetup
	Eager   bool          // the broken variant: activation at once
	Hold    time.Duration // outageHold of every node
}

// fleet is a cluster. One goroutine drives it, in a bubble; the plugins run beside it.
type fleet struct {
	pair  *net.UnixConn
	dir   string
	start time.Time

	tokens  []*hsm
	nodes   []*node
	keys    []*key // all that were made and not withdrawn, in order
	copies  []copying
	objects []object

	trace    []string
	violated error // the first broken promise
}

// copying is a copy of a key that is under way to a token.
type copying struct {
	key   *key
	token *hsm
	at    time.Time
}

// newFleet makes tokens with a first key that node 0's clock made current, and starts all nodes.
func newFleet(pair *net.UnixConn, dir string, s setup) (*fleet, error) {
	w := &fleet{pair: pair, dir: dir, start: time.Now()}
	for i, latency := range s.Latency {
		w.tokens = append(w.tokens, &hsm{name: fmt.Sprintf("token %d", i), latency: latency, keys: map[envelope.KeyID]*key{}})
	}
	for i, setup := range s.Nodes {
		n := &node{name: fmt.Sprintf("node %d", i), clock: &wallClock{}, refresh: setup.Refresh, eager: s.Eager, limit: s.Hold, booted: w.start}
		n.clock.set(setup.Skew)
		for _, t := range setup.Tokens {
			n.links = append(n.links, newLink(w.tokens[t]))
		}
		n.state = filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(n.state, 0o700); err != nil {
			return nil, err
		}
		w.nodes = append(w.nodes, n)
	}
	first, err := newKey(envelope.NewCKAID, 0, w.nodes[0].clock.now())
	if err != nil {
		return nil, err
	}
	w.keys = append(w.keys, first)
	for _, token := range w.tokens {
		token.add(first)
	}
	for _, n := range w.nodes {
		for _, l := range n.links {
			l.setUp(false)
			l.setUp(true)
		}
		if err := w.startNode(n); err != nil {
			return nil, err
		}
		time.Sleep(1037 * time.Millisecond) // no two nodes do things at one instant
	}
	return w, nil
}

// end stops all plugins.
func (w *fleet) end() {
	for _, n := range w.nodes {
		if n.stop != nil {
			n.stop()
		}
	}
}

func (w *fleet) startNode(n *node) error {
	wire, err := newWire(w.pair)
	if err != nil {
		return err
	}
	return n.start(wire)
}

// short is a key_id's fingerprint: enough to tell keys apart.
func short(keyID string) string {
	if i := strings.LastIndexByte(keyID, '/'); i >= 0 {
		return keyID[i+1:]
	}
	return keyID
}

func (w *fleet) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%-12s ", time.Since(w.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// broken notes a promise that did not hold.
func (w *fleet) broken(format string, args ...any) {
	w.note("BROKEN: "+format, args...)
	if w.violated == nil {
		w.violated = fmt.Errorf(format, args...)
	}
}

// inBubble runs f in a fleet, and gives what was broken and the story.
func inBubble(t *testing.T, s setup, f func(*fleet)) (story string, violated error) {
	t.Helper()
	pair, dir := socketPair(t), memoryDir(t)
	runBubble(t, func() {
		w, err := newFleet(pair, dir, s)
		if err != nil {
			violated = err
			return
		}
		defer w.end()
		f(w)
		violated, story = w.violated, strings.Join(w.trace, "\n")
	})
	return story, violated
}

// memoryDir is a folder in memory where there is one: what the plugin keeps is flushed once in a simulated minute, and a
// disk would take longer for it than all the rest.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hsm-kms-simulation-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
