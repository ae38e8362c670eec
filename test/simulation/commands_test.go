package simulation

import (
	"context"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// rotate is `keys rotate --activate-in d` on a machine with this clock; the copies arrive after lags, by token; a negative
// lag is a copy that nobody makes.
func (w *fleet) rotate(clock *wallClock, d time.Duration, lags []time.Duration) *key {
	return w.rotateTo(envelope.NewCKAID, clock, d, lags)
}

// rotateTo is rotate with a CKA_ID of that kind.
func (w *fleet) rotateTo(newID func(time.Time) ([]byte, error), clock *wallClock, d time.Duration, lags []time.Duration) *key {
	activation := clock.now().Add(d)
	for _, k := range w.keys {
		if !k.Activation.Before(activation) {
			w.note("rotate: refused, %s comes later", short(k.ID.String()))
			return nil
		}
	}
	k, err := newKey(newID, len(w.keys)+len(w.trace), activation)
	if err != nil {
		w.broken("making a key: %v", err)
		return nil
	}
	w.keys = append(w.keys, k)
	w.note("rotate: %s, in %s, by a clock off by %s, copies after %v", short(k.ID.String()), d, clock.skew(), lags)
	w.tokens[0].add(k)
	for i, token := range w.tokens[1:] {
		if i < len(lags) && lags[i] >= 0 {
			w.copies = append(w.copies, copying{k, token, time.Now().Add(lags[i])})
		}
	}
	return k
}

// withdrawMargin is that of `keys retire`.
const withdrawMargin = 5 * time.Minute

// withdraw is `keys retire` of the latest key on the machine of n, whose configuration names every token.
func (w *fleet) withdraw(n *node) *key {
	k := w.keys[len(w.keys)-1]
	var all links
	for _, token := range w.tokens {
		all = append(all, newLink(token))
	}
	proven, err := health.LoadProven(n.state, ringName)
	if err != nil {
		w.broken("reading the proven key: %v", err)
		return nil
	}
	ring := envelope.NewRing(envelope.RingConfig{Name: ringName, Profile: envelope.AESGCM, Floor: proven.Key, Now: n.clock.now, Grace: deferGrace}, all)
	if err := ring.Refresh(context.Background()); err != nil {
		w.broken("keys retire: %v", err)
		return nil
	}
	if err := ring.Exercise(context.Background()); err != nil {
		w.note("withdraw %s: refused: %v", short(k.ID.String()), err)
		return nil
	}
	for _, v := range ring.Advance().Versions {
		if v.ID == k.ID && v.State == envelope.Pending && v.Activation.Sub(n.clock.now()) >= max(withdrawMargin, 2*n.refresh) {
			w.destroy(k)
			return k
		}
	}
	w.note("withdraw %s: refused, it is not pending or its activation is near", short(k.ID.String()))
	return nil
}

// destroy removes the latest key everywhere.
func (w *fleet) destroy(k *key) {
	w.note("withdraw: %s", short(k.ID.String()))
	w.keys = w.keys[:len(w.keys)-1]
	for _, token := range w.tokens {
		token.remove(k.ID)
	}
	var others []copying
	for _, c := range w.copies {
		if c.key != k {
			others = append(others, c)
		}
	}
	w.copies = others
	for _, o := range w.objects {
		if o.keyID == k.ID.String() {
			w.broken("a key was withdrawn that %s needs", o)
		}
	}
}

// arrive does the copies that are due.
func (w *fleet) arrive() {
	var left []copying
	for _, c := range w.copies {
		if c.at.After(time.Now()) {
			left = append(left, c)
			continue
		}
		w.note("%s reaches %s", short(c.key.ID.String()), c.token.name)
		c.token.add(c.key)
	}
	w.copies = left
}
