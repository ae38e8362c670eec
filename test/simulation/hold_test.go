package simulation

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
)

// isHold reports whether a key_id is one of a hold.
func isHold(keyID string) bool { return strings.HasSuffix(keyID, "/hold") }

// saysOK reports whether Status of a node is ok.
func (n *node) saysOK() bool {
	if n.stop == nil {
		return false
	}
	answer, err := n.status()
	return err == nil && answer.Healthz == "ok"
}

// sees notes that the plugin has sealed or opened it.
func (n *node) sees(o object) {
	if n.seen == nil {
		n.seen = map[string]bool{}
	}
	n.seen[string(o.ciphertext)] = true
}

// derived reports whether this process of the node has derived the hold keys of a key, of every day.
func (n *node) derived(keyID string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	days := 0
	for _, e := range n.events[n.before:] {
		if e.Name == hold.EventDerived && e.KeyID+"/hold" == keyID {
			days++
		}
	}
	around := int((n.limit+24*time.Hour-1)/(24*time.Hour)) + 1
	return days >= 2*around+1
}

// canAsk reports whether a way of the node to a token has been good for a while, so that it does not live on its hold.
func (n *node) canAsk() bool {
	for _, l := range n.links {
		l.mu.Lock()
		good := l.generation != 0 && !l.stalled && l.fault == fault{} && time.Since(l.changed) > time.Minute
		l.mu.Unlock()
		if good {
			return true
		}
	}
	return false
}

// holdPoll is what n's API server does each minute: a Status and, under a new key_id, or when told to, an Encrypt. It holds the
// node to the promises of a hold.
func (w *fleet) holdPoll(n *node, write bool) {
	if n.stop == nil {
		return
	}
	answer, err := n.status()
	if err != nil || answer.Healthz != "ok" {
		if n.canAsk() {
			w.broken("%s has had its HSM for a minute, and Status says %v, %v", n.name, answer, err)
		}
		return
	}
	if answer.KeyId != n.sealed {
		w.note("%s: Status names %s", n.name, tail(answer.KeyId))
	}
	if !write && answer.KeyId == n.sealed {
		return
	}
	o, err := w.holdSeal(n)
	switch {
	case err != nil && w.isExcused(n):
		return
	case err != nil:
		w.broken("%s says ok, and cannot encrypt: %v", n.name, err)
		return
	}
	for _, other := range w.nodes {
		w.othersOpen(other, o)
	}
}

// tail is a key_id's fingerprint, and what follows it.
func tail(keyID string) string {
	if bare, found := strings.CutSuffix(keyID, "/hold"); found {
		return short(bare) + "/hold"
	}
	return short(keyID)
}

// holdSeal is an Encrypt as an API server makes it: an answer under another key_id than that of Status is refused, and tried once
// more after another Status.
func (w *fleet) holdSeal(n *node) (object, error) {
	dek := fmt.Sprintf("DEK %d of %s", len(w.objects), n.name)
	for range 2 {
		answer, err := n.encrypt([]byte(dek))
		if err != nil {
			return object{}, err
		}
		if answer.KeyId != n.named {
			w.note("%s: Encrypt seals under %s, Status named %s", n.name, tail(answer.KeyId), tail(n.named))
			if _, err := n.status(); err != nil {
				return object{}, err
			}
			continue
		}
		o := object{answer.KeyId, answer.Ciphertext, dek, n.name, time.Now()}
		n.sealed = o.keyID
		n.sees(o)
		w.objects = append(w.objects, o)
		return o, nil
	}
	return object{}, errors.New("Encrypt twice sealed under another key_id than Status named before")
}

// othersOpen holds a node to this: while it says ok it opens what was written on hold under a key whose hold keys it has; and all else,
// written with the HSM or under a key that it has not read before its HSM went away, it opens, or says from then on that it is not ok.
func (w *fleet) othersOpen(n *node, o object) {
	if !n.saysOK() {
		return
	}
	dek, err := n.open(o)
	switch {
	case err == nil && string(dek) != o.dek:
		w.broken("%s opens %s to something else", n.name, o)
	case err == nil:
		n.sees(o)
	case w.isExcused(n):
	case status.Code(err) == codes.DeadlineExceeded:
		w.broken("%s took more than %s over %s", n.name, apiServerTimeout, o)
	case isHold(o.keyID) && n.derived(o.keyID):
		w.broken("%s says ok, and cannot open %s, written on hold: %v", n.name, o, err)
	case n.saysOK():
		w.broken("%s could not open %s, and says ok all the same: %v", n.name, o, err)
	default:
		w.note("%s is not ok from now on: it cannot open %s", n.name, o)
	}
}

// restartAPIServer is a start of n's API server: it reads all that is in etcd, and wants a new DEK. Where the plugin says ok, what it
// has seen before it opens; othersOpen is about the rest.
func (w *fleet) restartAPIServer(n *node) {
	if !n.saysOK() {
		w.note("%s is not ok: its API server does not start", n.name)
		return
	}
	w.note("the API server of %s restarts", n.name)
	for _, o := range w.objects {
		if !n.seen[string(o.ciphertext)] {
			w.othersOpen(n, o)
			continue
		}
		if dek, err := n.open(o); (err != nil || string(dek) != o.dek) && !w.isExcused(n) {
			w.broken("%s said ok, and its API server could not read %s: %q, %v", n.name, o, dek, err)
			return
		}
	}
	w.holdPoll(n, true)
}

// isExcused reports whether a node may say ok and fail, as it may without a hold: it has none that would answer, and its HSM fails at
// times, or has changed so shortly ago that no probe has found out.
func (w *fleet) isExcused(n *node) bool {
	if s := n.hold.State(); s.Armed || s.Holding {
		return false
	}
	for _, l := range n.links {
		l.mu.Lock()
		excused := l.fault != fault{} || time.Since(l.changed) < 45*time.Second
		l.mu.Unlock()
		if excused {
			return true
		}
	}
	return false
}

// holdRun lets d pass. API servers poll each minute, and write at every third poll.
func (w *fleet) holdRun(d time.Duration) {
	const step = 5 * time.Second
	for end := time.Now().Add(d); time.Now().Before(end) && w.violated == nil; {
		time.Sleep(min(step, time.Until(end)))
		w.arrive()
		tick := int(time.Since(w.start) / step)
		for i, n := range w.nodes {
			if (tick+i)%12 == 0 {
				w.holdPoll(n, tick%36 < 12)
			}
		}
	}
}

// ways changes the ways of some nodes to all tokens.
func (w *fleet) ways(what string, change func(*link), nodes ...*node) {
	for _, n := range nodes {
		w.note("%s: %s", n.name, what)
		for _, l := range n.links {
			change(l)
		}
	}
}

func (w *fleet) cut(nodes ...*node) {
	w.ways("the HSM is away", func(l *link) { l.setUp(false) }, nodes...)
}

func (w *fleet) back(nodes ...*node) {
	w.ways("the HSM is back", func(l *link) { l.setFault(fault{}); l.setUp(true) }, nodes...)
}

// times counts events of a node.
func (n *node) times(name string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if e.Name == name {
			count++
		}
	}
	return count
}

// suspend lets the machine of n stand still: its clocks go on, and nothing else.
func (n *node) suspend(d time.Duration) {
	n.suspended.Add(int64(d))
	n.clock.set(n.clock.skew() + d)
}

// armed waits until the node's hold is armed.
func (w *fleet) armed(nodes ...*node) {
	for _, n := range nodes {
		for end := time.Now().Add(time.Minute); !n.hold.State().Armed; time.Sleep(time.Second) {
			if time.Now().After(end) {
				w.broken("%s is not armed: %s", n.name, n.hold.State().Why)
				return
			}
		}
	}
}

// over is the end of a story: all is repaired, and no trace of a hold is left but what etcd has.
func (w *fleet) over() {
	if w.violated != nil {
		return
	}
	for _, k := range w.keys {
		w.tokens[0].add(k)
	}
	w.back(w.nodes...)
	for _, n := range w.nodes {
		if n.stop == nil {
			w.restart(n)
		}
	}
	last := w.keys[len(w.keys)-1]
	var due time.Duration
	for _, n := range w.nodes {
		due = max(due, last.Activation.Sub(n.clock.now()))
	}
	w.holdRun(due + 3*time.Minute)
	for _, n := range w.nodes {
		if !n.saysOK() || n.named != last.ID.String() {
			w.broken("in the end %s names %s", n.name, tail(n.named))
		}
		for _, o := range w.objects {
			if dek, err := n.open(o); err != nil || string(dek) != o.dek {
				w.broken("in the end %s cannot open %s: %v", n.name, o, err)
			}
		}
		if began, ended := n.times(hold.EventBegan), n.times(hold.EventEnded); began != ended {
			w.broken("%s: %d holds began, and %d ended", n.name, began, ended)
		}
	}
}
