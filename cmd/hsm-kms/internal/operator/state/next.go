package state

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/duration"
)

// Next decides. It is called again after each action, until it says Wait.
func Next(w World) Decision {
	if d, blocked := w.nodes(); blocked {
		return w.warned(d)
	}
	d, ok := w.agreed()
	if !ok {
		return d
	}
	current := d.Current
	if !current.Activates.IsZero() && w.Now.Before(current.Activates.Add(Notice)) {
		return Decision{State: Active, Do: Wait, Current: current, Next: current.Activates.Add(Notice), Reason: "every node has the key; the API servers notice it within a minute"}
	}
	d = w.step(current)
	d.Current = current
	return d
}

// blocked asks for a person.
func blocked(reason, hint string) Decision {
	return Decision{State: Blocked, Do: Wait, Reason: reason, Hint: hint}
}

// nodes: every node that is expected is known and well.
func (w *World) nodes() (Decision, bool) {
	if len(w.Nodes) == 0 {
		return blocked("no node is known", "start hsm-kms operate on each control-plane node"), true
	}
	for _, n := range w.Nodes {
		switch {
		case n.Unknown != "" && w.Now.Before(n.Until):
			return Decision{State: Converging, Do: Wait, Reason: fmt.Sprintf("waiting for the node %s: %s", n.Name, n.Unknown), Next: n.Until}, true
		case n.Unknown != "":
			return blocked(fmt.Sprintf("nothing is known of the node %s: %s", n.Name, n.Unknown),
				"check that hsm-kms operate of that node runs, has this version, and reaches an API server; if the node is gone for good, delete its Lease: docs/operate.md#a-node-is-gone"), true
		case n.Holding != "":
			return blocked(fmt.Sprintf("the plugin of the node %s answers without its HSM: %s", n.Name, n.Holding),
				"bring the HSM back; nothing is rewritten and no key becomes current there before: docs/outage.md"), true
		case n.Problem != "":
			return blocked(fmt.Sprintf("the plugin of the node %s is not well: %s", n.Name, n.Problem), "see hsm-kms status and the plugin's log on that node"), true
		}
	}
	return Decision{}, false
}

// warned adds to a block that a key becomes current all the same: its activation stands in the key.
func (w *World) warned(d Decision) Decision {
	for _, n := range w.Nodes {
		for _, p := range n.Pending {
			if p.Activates.After(w.Now) {
				d.Next = p.Activates
				d.Reason += fmt.Sprintf("; %s becomes current at %s all the same", p.ID, second(p.Activates))
				if d.State == Blocked && w.writer(p.ID) == "" {
					d.Hint += "; if that cannot be in time, withdraw the key before then: hsm-kms keys retire " + p.ID
				}
				return d
			}
		}
	}
	return d
}

// agreed: every node has the same current key, and none is to come.
func (w *World) agreed() (Decision, bool) {
	if pending, ok := w.nextPending(); ok {
		return w.coming(pending), false
	}
	newest := w.Nodes[0]
	for _, n := range w.Nodes[1:] {
		if n.Current.Activates.After(newest.Current.Activates) {
			newest = n
		}
	}
	for _, n := range w.Nodes {
		if n.Current != newest.Current {
			reason := fmt.Sprintf("%s writes under %s, and %s under %s", newest.Name, newest.Current.ID, n.Name, n.Current.ID)
			return w.late(newest.Current.Activates, reason), false
		}
	}
	return Decision{Current: newest.Current}, true
}

// late is what nodes may do for a while after an activation.
func (w *World) late(activates time.Time, reason string) Decision {
	if until := activates.Add(Grace); w.Now.Before(until) && !w.Now.Before(activates) {
		return Decision{State: Converging, Do: Wait, Reason: reason, Next: until}
	}
	return blocked(reason, "see hsm-kms keys list on these nodes: each must hold the key on every token and have the right time")
}

// nextPending is the key that becomes current next, of all that nodes name.
func (w *World) nextPending() (next Pending, some bool) {
	for _, n := range w.Nodes {
		for _, p := range n.Pending {
			if !some || p.Activates.Before(next.Activates) {
				next, some = p, true
			}
		}
	}
	return next, some
}

// coming is about a key that a node has not made current yet. Nothing is rewritten meanwhile: it would be done twice.
func (w *World) coming(next Pending) Decision {
	var unready []string
	for _, n := range w.Nodes {
		i := slices.IndexFunc(n.Pending, func(p Pending) bool { return p.ID == next.ID })
		switch {
		case n.Current.ID == next.ID:
		case i < 0:
			unready = append(unready, n.Name+" does not know it")
		case n.Pending[i].Deferred:
			return w.deferred(n.Name, n.Pending[i])
		case !n.Pending[i].Ready:
			unready = append(unready, n.Name+" has not proven it on every token")
		}
	}
	writer := w.writer(next.ID)
	switch at := second(next.Activates); {
	case writer != "" && w.Now.Add(Notice).Before(next.Activates):
		return blocked(fmt.Sprintf("%s writes under %s, which becomes current at %s: a clock is wrong", writer, next.ID, at),
			"set the clocks of all nodes right; keep the key: objects are under it, or soon will be")
	case !w.Now.Before(next.Activates):
		return w.late(next.Activates, fmt.Sprintf("%s is due since %s, and not current on every node", next.ID, at))
	case len(unready) == 0:
		return Decision{State: Announced, Do: Wait, Next: next.Activates, Reason: fmt.Sprintf("%s becomes current at %s, and every node is ready", next.ID, at)}
	default:
		d := Decision{State: Converging, Do: Wait, Next: next.Activates, Reason: fmt.Sprintf("%s becomes current at %s, and not every node is ready: %s", next.ID, at, strings.Join(unready, "; "))}
		if w.Now.Add(LastCall).After(next.Activates) {
			d.State = Blocked
			d.Hint = "copy the key to every token"
			if writer == "" {
				d.Hint += ", or withdraw it before then: hsm-kms keys retire " + next.ID
			}
		}
		return d
	}
}

// writer is a node that writes under the key; empty: none is known. A key that is in use is not to be withdrawn.
func (w *World) writer(key string) string {
	for _, n := range w.Nodes {
		if n.Current.ID == key {
			return n.Name
		}
	}
	return ""
}

func (w *World) deferred(node string, p Pending) Decision {
	d := blocked(fmt.Sprintf("%s is due and held back on %s: %s", p.ID, node, p.Why), "copy the key to the tokens that lack it, and make the others reachable; docs/rotation.md")
	d.Next = p.Until
	return d
}

// step is what is to be done when every node writes under one key.
func (w *World) step(current Key) Decision {
	read := w.Etcd
	if read == nil || read.Key != current.ID || w.Now.Sub(read.At) > w.Recheck {
		return w.attempt(Active, Read, "etcd is read")
	}
	if read.Foreign != "" { // its objects are none of ours: what is rewritten, proven and named for retirement would be wrong
		d := blocked(read.Foreign, "see which cluster's configuration names this ring, and correct --endpoints or --cluster; a ring belongs to one cluster")
		d.Next = read.At.Add(RetryMost)
		if !w.Now.Before(d.Next) {
			d.Do, d.Next = Read, time.Time{}
		}
		return d
	}
	old := w.retained(current)
	if gone := w.notClean(); len(gone) > 0 {
		return Decision{State: Migrating, Do: Forget, Keys: gone, Reason: "etcd holds again what was clean before"}
	}
	if read.Left > 0 || read.Findings != "" {
		if d, ok := w.proven(current, FreshFor); !ok {
			return d
		}
		return w.attempt(Migrating, Migrate, fmt.Sprintf("objects are not under the current key (%d): %s", read.Left, read.Findings))
	}
	if len(old) == 0 {
		return Decision{State: Steady, Do: Wait, Next: read.At.Add(w.Recheck), Reason: "everything is under the current key, and no plugin names an older one"}
	}
	return w.old(current, old)
}

// notClean are the keys with a clean reading that etcd has objects under all the same.
func (w *World) notClean() (keys []string) {
	for key := range w.Clean {
		if w.Etcd.Under[key] > 0 {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// retained are the keys that some node still serves and none writes under.
func (w *World) retained(current Key) (keys []string) {
	for _, n := range w.Nodes {
		for _, k := range n.Retained {
			if k.ID != current.ID && !slices.Contains(keys, k.ID) {
				keys = append(keys, k.ID)
			}
		}
	}
	return keys
}

// old is what is to be done about old keys when everything that was asked for is under the current one.
func (w *World) old(current Key, old []string) Decision {
	var settling, unrecorded, due []string
	var until time.Time
	for _, key := range old {
		first, clean := w.Clean[key]
		switch {
		case w.Etcd.Under[key] > 0:
			return blocked(fmt.Sprintf("%d objects of other resources are under the old key %s", w.Etcd.Under[key], key),
				"see which with: hsm-kms etcd report; then give them all to hsm-kms operate --resources")
		case !clean:
			unrecorded = append(unrecorded, key)
		case w.Now.Before(first.Add(w.Settle)):
			settling = append(settling, key)
			if at := first.Add(w.Settle); until.IsZero() || at.Before(until) {
				until = at
			}
		default:
			due = append(due, key)
		}
	}
	switch {
	case len(unrecorded) > 0:
		if d, ok := w.provenAndRead(current); !ok {
			return d
		}
		d := w.attempt(Settling, Record, "nothing is under the old key")
		d.Keys = unrecorded
		return d
	case len(due) > 0:
		return w.retirable(current, due)
	}
	return Decision{State: Settling, Do: Wait, Next: until,
		Reason: fmt.Sprintf("nothing is under %s; etcd is read again when %s have passed since the first clean reading", strings.Join(settling, ", "), duration.String(w.Settle))}
}

// retirable is about keys whose time has passed. A reading and a proof of less than Recheck ago stand, as long as the API
// servers are the same: hsm-kms keys retire reads etcd again.
func (w *World) retirable(current Key, due []string) Decision {
	if d, ok := w.proven(current, w.Recheck); !ok {
		return d
	}
	late := slices.ContainsFunc(due, func(key string) bool { return w.Etcd.At.Before(w.Clean[key].Add(w.Settle)) })
	if late || w.Etcd.At.Before(w.Proof.At) || w.Etcd.At.Sub(w.Proof.At) > FreshFor {
		if d, ok := w.provenAndRead(current); !ok {
			return d
		}
	}
	if late {
		return w.attempt(Settling, Read, "etcd is read a second time")
	}
	d := Decision{State: Retirable, Do: Wait, Next: w.Etcd.At.Add(w.Recheck), Retirable: due}
	for _, key := range due {
		if reason := w.Etcd.Against[key]; reason != "" { // etcd was restored, for example: it settles again
			return Decision{State: Settling, Do: Forget, Keys: []string{key}, Reason: fmt.Sprintf("the first clean reading of %s counts no longer: %s", key, reason)}
		}
	}
	d.Reason = fmt.Sprintf("no API server writes under %s, and etcd was clean of it twice, %s apart", strings.Join(due, ", "), duration.String(w.Settle))
	return d
}

// provenAndRead: a proof that is recent, and after it a reading.
func (w *World) provenAndRead(current Key) (Decision, bool) {
	if d, ok := w.proven(current, FreshFor); !ok {
		return d, false
	}
	if w.Etcd.At.Before(w.Proof.At) || w.Now.Sub(w.Etcd.At) > FreshFor {
		return w.attempt(Proving, Read, "every API server writes under the key; etcd is read once more"), false
	}
	return Decision{}, true
}

// proven: the API servers that there are now have written under the key within the time.
func (w *World) proven(current Key, within time.Duration) (Decision, bool) {
	if w.Servers == nil || w.Now.Sub(w.Servers.At) > FreshFor {
		return w.attempt(Active, Look, "the API servers are looked at"), false
	}
	if w.Servers.Missing != "" || w.Servers.NotReady != "" {
		d := blocked(cmp.Or(w.Servers.Missing, w.Servers.NotReady), "check that every API server and its plugin run; docs/operate.md#api-servers")
		if retry := w.Servers.At.Add(RetryFirst); !w.Now.Before(retry) {
			d.Do = Look
		} else {
			d.Next = retry
		}
		return d, false
	}
	if w.Proof == nil || w.Proof.Key != current.ID || w.Now.Sub(w.Proof.At) > within || !w.sameServers() {
		d := w.attempt(Proving, Prove, "every API server writes an object, and etcd is looked at")
		if until := current.Activates.Add(Grace); d.State == Blocked && w.Now.Before(until) {
			d.State, d.Hint = Proving, ""
		}
		return d, false
	}
	return Decision{}, true
}

// sameServers: the proof is about the API servers that there are.
func (w *World) sameServers() bool {
	return w.Servers != nil && w.Servers.Missing == "" && slices.Equal(w.Proof.Servers, w.Servers.Names)
}

// attempt is an action, unless it failed a moment ago: then it is waited, and a person is told.
func (w *World) attempt(state Name, action Action, reason string) Decision {
	trouble, failed := w.Trouble[action]
	if !failed {
		return Decision{State: state, Do: action, Reason: reason}
	}
	d := blocked(trouble.Reason, trouble.Hint)
	if d.Next = trouble.At.Add(pause(trouble.InARow)); !w.Now.Before(d.Next) {
		d.Do, d.Next = action, time.Time{}
	}
	return d
}

// pause is how long to wait after so many failures in a row.
func pause(inARow int) time.Duration {
	return min(RetryMost, RetryFirst<<min(max(inARow-1, 0), 10))
}

func second(t time.Time) string { return t.UTC().Format(time.RFC3339) }
