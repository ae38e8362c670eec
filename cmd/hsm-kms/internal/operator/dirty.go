package operator

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

// dirtyAnnotation of the leader's Lease is what every leader has to know of those before it.
const dirtyAnnotation = "hsm-kms.io/dirty"

// dirty is, for each old key, when a leader read an object under it last. A clean report that a node keeps from before, when
// it led, says nothing any more: another leader may have seen an object since, and had it rewritten. It delays, and never
// proves.
type dirty map[string]time.Time

// readAt is when a report was made, by the clock of the control-plane node that renewed a Lease last before it.
func readAt(r *evidence.Report) time.Time {
	at := gate.Clock(r)
	if at.IsZero() {
		at, _ = time.Parse(time.RFC3339Nano, r.Time) // of ours, or of a file that was checked
	}
	return at
}

// noteUses notes which old keys the report has objects under. Only keys that a plugin names are of interest.
func (o *Operator) noteUses(report *evidence.Report, under map[string]int64) {
	old := map[string]bool{}
	for _, n := range o.world.Nodes {
		for _, key := range n.Retained {
			old[key.ID] = true
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.dirty, func(key string, _ time.Time) bool { return !old[key] })
	for key := range old {
		if under[key] > 0 {
			o.dirty[key] = readAt(report)
		}
	}
}

// share merges what this leader has noted with what those before it left in the Lease. A Lease that cannot be read is ignored,
// and so is a time that is still to come: the clock was wrong.
func (o *Operator) share(lease *coordinationv1.Lease) {
	var known dirty
	if text := lease.Annotations[dirtyAnnotation]; len(text) > maxPublished || json.Unmarshal([]byte(text), &known) != nil {
		known = nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for key, at := range known {
		if at.After(o.dirty[key]) && at.Before(time.Now().Add(skew)) {
			o.dirty[key] = at
		}
	}
	lease.Annotations = nil
	if text, err := json.Marshal(o.dirty); err == nil && len(o.dirty) > 0 && len(text) <= maxPublished {
		lease.Annotations = map[string]string{dirtyAnnotation: string(text)}
	}
}

// skew is how far the clock of another node may be ahead.
const skew = 5 * time.Minute

// dropStale forgets clean reports of keys that a leader has read an object under since.
func (o *Operator) dropStale() {
	var stale []string
	o.mu.Lock()
	for key, file := range o.kept.files {
		if o.dirty[key].After(readAt(file.Report)) {
			stale = append(stale, key)
		}
	}
	o.mu.Unlock()
	if len(stale) == 0 {
		return
	}
	slices.Sort(stale)
	reason := "a leader has read an object under the key since"
	if err := o.kept.forget(stale); err != nil {
		reason += "; the file stays: " + err.Error()
	}
	o.cfg.Log.Warn("a clean reading counts no longer; it settles again", "reason", reason, "keys", stale)
}
