package simulation

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// poll is one Status of n's API server, an Encrypt after delay, and what is promised of both. It seals when the key_id is
// new, as the API server does, or when told to.
func (w *fleet) poll(n *node, delay time.Duration, seal bool) {
	if n.stop == nil {
		return
	}
	answer, err := n.status()
	if err != nil || answer.Healthz != "ok" {
		if n.settled(2 * time.Minute) {
			w.broken("%s has had a token for two minutes, and Status says %v, %v", n.name, answer, err)
		}
	}
	if err != nil {
		w.note("%s: Status: %v", n.name, err)
		return
	}
	id, err := envelope.ParseKeyID(answer.KeyId)
	if err != nil {
		w.broken("%s: Status names %q: %v", n.name, answer.KeyId, err)
		return
	}
	if older(id, n.latest) {
		w.broken("%s: Status goes back from %s to %s", n.name, short(n.latest.String()), short(answer.KeyId))
	}
	if id != n.latest {
		w.note("%s: Status names %s, %s", n.name, short(answer.KeyId), answer.Healthz)
	}
	n.latest = id
	if seal || answer.KeyId != n.sealed {
		time.Sleep(delay)
		w.seal(n)
	}
}

// older tells the order of two keys of ours: that of their activation.
func older(a, b envelope.KeyID) bool {
	at := func(id envelope.KeyID) time.Time {
		t, _ := envelope.ActivationOf([]byte(id.Version))
		return t
	}
	return at(a).Before(at(b))
}

// seal is one Encrypt, and what is promised of it.
func (w *fleet) seal(n *node) {
	dek := fmt.Sprintf("DEK %d of %s", len(w.objects), n.name)
	answer, err := n.encrypt([]byte(dek))
	if err != nil {
		if n.settled(2 * time.Minute) {
			w.broken("%s has had a token for two minutes, and cannot encrypt: %v", n.name, err)
		}
		return
	}
	if answer.KeyId != n.named {
		w.broken("%s: Encrypt seals under %s, Status named %s", n.name, short(answer.KeyId), short(n.named))
	}
	o := object{answer.KeyId, answer.Ciphertext, dek, n.name, time.Now()}
	if n.sealed != o.keyID {
		w.note("%s seals under %s", n.name, short(o.keyID))
	}
	n.sealed = o.keyID
	w.objects = append(w.objects, o)
	for _, other := range w.nodes {
		if other.lives(2 * time.Second) { // a re-read that failed counts for a second
			w.mustOpen(other, o)
		}
	}
}

func (w *fleet) mustOpen(n *node, o object) {
	dek, err := n.open(o)
	switch {
	case err == nil && string(dek) != o.dek:
		w.broken("%s opens %s to something else", n.name, o)
	case err != nil && w.mayBeAway(n, err):
	case err != nil:
		w.broken("%s cannot open %s: %v", n.name, o, err)
	}
}

// mayBeAway reports whether one of several tokens, which may be the one that is needed, cannot be asked now.
func (w *fleet) mayBeAway(n *node, err error) bool {
	if status.Code(err) == codes.NotFound {
		return false
	}
	for _, l := range n.links {
		if !l.usable(2 * time.Second) {
			return true
		}
	}
	return false
}

// run lets d pass: API servers poll every minute, copies arrive. seal tells of each poll whether it seals anyhow.
func (w *fleet) run(d time.Duration, seal func() bool) {
	const step = 5 * time.Second
	for end := time.Now().Add(d); time.Now().Before(end) && w.violated == nil; {
		time.Sleep(min(step, time.Until(end)))
		w.arrive()
		tick := int(time.Since(w.start) / step)
		for i, n := range w.nodes {
			if (tick+i)%12 == 0 {
				w.poll(n, 0, seal())
			}
		}
	}
}

// repair makes all right: clocks, ways, plugins, copies. And then promise 5 must hold.
func (w *fleet) repair() {
	w.note("everything is repaired")
	for _, n := range w.nodes {
		n.clock.set(0)
		for _, l := range n.links {
			l.setUp(true)
			l.setStalled(false)
		}
		if n.stop == nil {
			if err := w.startNode(n); err != nil {
				w.broken("starting %s: %v", n.name, err)
			}
		}
	}
	for _, k := range w.keys {
		for _, token := range w.tokens {
			token.add(k)
		}
	}
	w.copies = nil
	last := w.keys[len(w.keys)-1]
	w.run(max(time.Until(last.Activation), 0)+5*time.Minute, func() bool { return false })
	for _, n := range w.nodes {
		answer, err := n.status()
		if err != nil || answer.Healthz != "ok" || answer.KeyId != last.ID.String() {
			w.broken("in the end %s says %v, %v and not %s", n.name, answer, err, last.ID)
		}
		for _, o := range w.objects {
			if dek, err := n.open(o); err != nil || string(dek) != o.dek {
				w.broken("in the end %s cannot open %s: %v", n.name, o, err)
			}
		}
	}
}
