package retire

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// Request is what the operator asked for.
type Request struct {
	KeyID        envelope.KeyID
	EvidenceFile string // empty: none
	Named        int    // how many snapshots were named
	Settle       time.Duration
	Accepted     gate.Accepted
	NoEtcd       bool // a pending key, and etcd is not asked
	// WrittenRing is the ring that the configuration writes under, if that of the key is only read; and Retiring what the
	// configuration says of the key's.
	WrittenRing string
	Retiring    bool
	// Of the configuration.
	AuditPath       string
	Rehearsed       bool // refuseKeys names the key
	RefreshInterval time.Duration
	OutageHold      time.Duration
}

// Facts are what Run has gathered.
type Facts struct {
	Now      time.Time
	Problems []error // of tokens that cannot be used: nothing that the ring says can be relied on then
	View     envelope.View
	Written  []string // the key_ids of Request.WrittenRing that its tokens hold
	Tokens   []Token  // of the configuration; Holds is not looked at
	// Cluster is the one that the ring is bound to; empty: none. ClusterErr is why that is not clear.
	Cluster    string
	ClusterErr error
	Proven     health.Proven
	ProvenErr  error // why what the plugin of this machine proved last is not known
	Plugin     Plugin
	// Used is where this machine's audit trail has the key, of a pending one; UsedErr why that is not known.
	Used    string
	UsedErr error
	// Of the trail of keys retire on this machine, of a key that no token holds.
	Destruction    Destruction
	DestructionErr error
	// Evidence is the file of a key that was current; NotEvidence why it is none.
	Evidence    *gate.File
	NotEvidence error
	Etcd        *evidence.Report // made now; nil: it was not read
	EtcdErr     error            // why not, of a pending key
	Snapshots   []*evidence.Report
}

// Plugin is what the plugin of this machine says.
type Plugin struct {
	Answered bool
	KeyID    string        // that it names as the key to write under
	Hold     time.Duration // its outageHold
	Err      error         // somebody listens, and gave no answer
}

// judgement is one judging. Only Judge makes one.
type judgement struct {
	Request
	Facts
	plan *Plan
}

// targetState says which state the key has, so that gather knows what to find out: empty when no token holds it.
func targetState(view envelope.View, id envelope.KeyID) envelope.State {
	if i := target(view, id); i >= 0 {
		return view.Versions[i].State
	}
	return ""
}

func target(view envelope.View, id envelope.KeyID) int {
	return slices.IndexFunc(view.Versions, func(v envelope.Version) bool { return v.ID == id && v.State != envelope.Refused })
}

// Judge makes the plan, with everything that speaks against it.
func Judge(r Request, f Facts) *Plan {
	j := &judgement{Request: r, Facts: f, plan: &Plan{
		Content:  Content{Format: format, KeyID: r.KeyID.String(), Tokens: []Token{}, Ring: []Key{}, Snapshot: []string{}, Etcd: []Etcd{}, Accepted: []string{}},
		Refusals: []gate.Refusal{}, Warnings: []string{},
	}}
	if err := errors.Join(f.Problems...); err != nil {
		j.refuse(hint.Wrap(fmt.Errorf("a key is destroyed only when every configured token can be reached: %w", err),
			"make every token reachable, or take one that is gone for good out of the configuration"))
		return j.plan
	}
	if err := clockIsPlausible(f.View.Versions, f.Proven, f.Now); err != nil {
		j.refuse(err)
	}
	if f.ClusterErr != nil {
		j.refuse(hint.Wrap(fmt.Errorf("it is not clear which cluster the ring belongs to: %w", f.ClusterErr),
			"see which cluster's configuration names this ring, and what the etcd of each holds under the key: hsm-kms etcd report"))
	}
	if i := target(f.View, r.KeyID); i >= 0 {
		j.plan.Target = f.View.Versions[i]
	}
	j.settle()
	j.content()
	switch j.plan.Target.State {
	case envelope.Retained:
		j.plan.Whole = f.Etcd != nil && f.Evidence != nil
		j.retained()
		j.plugin()
		j.evidence()
	case "":
		j.unserved()
		j.gone()
	default:
		j.plan.Whole = f.Etcd != nil || r.NoEtcd
		j.pending()
		if j.plan.Target.State != envelope.Current { // which is refused whatever the plugin says
			j.plugin()
		}
	}
	return j.plan
}

// refuse notes a reason against the destruction. The error has its advice.
func (j *judgement) refuse(err error) {
	j.plan.Refusals = append(j.plan.Refusals, gate.Refusal{Reason: err.Error(), Hint: app.Hint(err)})
}

func (j *judgement) warn(format string, args ...any) {
	j.plan.Warnings = append(j.plan.Warnings, fmt.Sprintf(format, args...))
}

// settle makes the time between the reports long enough for the longest outage hold that is known of any node: by this machine's
// configuration, its plugin, and the Leases that were read in etcd.
func (j *judgement) settle() {
	longest := max(j.OutageHold, j.Plugin.Hold)
	for _, report := range []*evidence.Report{j.Etcd, j.reported()} {
		if report != nil {
			longest = max(longest, gate.LongestHold(report))
		}
	}
	asked := j.Settle
	j.Settle = gate.SettleWith(asked, longest)
	if j.plan.Settled = j.Settle; j.Settle != asked && j.plan.Target.State == envelope.Retained {
		j.warn("a plugin may write in an outage hold for %s (outageHold): %s must lie between the reports, whatever --settle says", duration.String(longest), duration.String(j.Settle))
	}
}

// reported is the report of the file; nil: there is none.
func (j *judgement) reported() *evidence.Report {
	if j.Evidence == nil {
		return nil
	}
	return j.Evidence.Report
}

// content fills in what the plan's hash is made of.
func (j *judgement) content() {
	c := &j.plan.Content
	c.State, c.Cluster = string(j.plan.Target.State), j.Cluster
	for _, token := range j.Tokens {
		token.Holds = slices.Contains(j.plan.Target.Tokens, token.Name)
		c.Tokens = append(c.Tokens, token)
	}
	for _, v := range j.View.Versions {
		name := v.ID.String()
		if v.ID.Fingerprint == [envelope.FingerprintSize]byte{} {
			name = fmt.Sprintf("CKA_ID %x", v.CKAID)
		}
		c.Ring = append(c.Ring, Key{name, string(v.State)})
	}
	slices.SortFunc(c.Ring, func(a, b Key) int { return cmp.Or(cmp.Compare(a.KeyID, b.KeyID), cmp.Compare(a.State, b.State)) })
	c.Accepted = j.Accepted.List()
	if j.plan.Target.State == envelope.Retained {
		c.Settle = j.Settle.String()
	} else if j.NoEtcd {
		c.Accepted = append([]string{"no-etcd"}, c.Accepted...)
	}
	slices.Sort(c.Accepted)
	if j.Evidence != nil {
		c.Evidence = j.Evidence.SHA256
	}
	for _, s := range j.Snapshots {
		c.Snapshot = append(c.Snapshot, s.Sources[0].SHA256)
	}
	slices.Sort(c.Snapshot)
	if j.Etcd != nil {
		for _, s := range j.Etcd.Sources {
			c.Etcd = append(c.Etcd, Etcd{s.Cluster, slices.Sorted(slices.Values(s.Prefixes))})
		}
	}
}

// others are the other key_ids of the ring that the tokens hold, and those of the ring that took its place.
func (j *judgement) others() []string {
	others := slices.Clone(j.Written)
	for _, v := range j.View.Versions {
		if v.State != envelope.Refused && v.ID != j.KeyID {
			others = append(others, v.ID.String())
		}
	}
	return others
}

// unserved: a key that is not served has no fingerprint, so nobody knows whether it is this one. It must not pass for
// destroyed.
func (j *judgement) unserved() {
	for _, v := range j.View.Versions {
		if v.State == envelope.Refused && v.ID.Version == j.KeyID.Version && v.ID.Fingerprint == [envelope.FingerprintSize]byte{} {
			j.refuse(hint.Wrap(fmt.Errorf("it is not clear whether %s is still there: an object with its CKA_ID on %s is not served: %s", j.KeyID, strings.Join(v.Tokens, ","), v.Refused),
				"find out why with: hsm-kms keys list; fix that first"))
		}
	}
}

// gone is about a key_id that no token holds: destroyed, by this machine's trail, or never there. A destruction that was
// begun and has no end on record is no refusal: what is left to do is to record its end.
func (j *judgement) gone() {
	if j.DestructionErr != nil {
		j.warn("%v", j.DestructionErr)
	}
	const list = "see what is there with: hsm-kms keys list"
	switch is := j.Destruction; {
	case !is.Ended.IsZero():
		j.refuse(hint.Wrap(fmt.Errorf("%w: %s is not in the ring: it was destroyed at %s, by the audit trail of this machine",
			envelope.ErrUnknownKey, j.KeyID, is.Ended.UTC().Format(time.RFC3339)), list))
	case is.Begun.IsZero():
		j.refuse(hint.Wrap(fmt.Errorf("%w: %s is not in the ring", envelope.ErrUnknownKey, j.KeyID), list))
	}
}

// sameCKAID warns of objects that stay although they have the CKA_ID of the key.
func (j *judgement) sameCKAID() {
	for _, v := range j.View.Versions {
		if v.State == envelope.Refused && v.ID.Version == j.KeyID.Version && v.ID != j.KeyID {
			j.warn("an object with the CKA_ID of this key on %s is not served (%s), and stays", strings.Join(v.Tokens, ","), v.Refused)
		}
	}
}

// plugin: the plugin of this machine must not be about to seal under the key, whatever the ring says.
func (j *judgement) plugin() {
	j.sameCKAID()
	if j.ProvenErr != nil {
		j.refuse(hint.Wrap(fmt.Errorf("it is not clear which key the plugin of this machine proved last: %w", j.ProvenErr),
			"run it as a user that can read "+health.ProvenFile+" in stateDir; a plugin that runs writes the file again when it has exercised its key"))
	}
	if j.WrittenRing != "" {
		j.pluginReads()
		return
	}
	if j.Proven.Key == j.KeyID {
		j.refuse(hint.Wrap(fmt.Errorf("the plugin of this machine proved %s last (%s in stateDir): after a restart without its HSM it would name it again", j.KeyID, health.ProvenFile),
			"start hsm-kms serve here until hsm-kms status names the current key; where no plugin belongs, give this machine a stateDir of its own"))
	}
	switch {
	case j.Plugin.Err != nil:
		j.refuse(fmt.Errorf("it is not clear which key the plugin of this machine writes under: %w", j.Plugin.Err))
	case j.Plugin.Answered && envelope.KeyOf(j.Plugin.KeyID) == j.KeyID.String():
		j.refuse(hint.Wrap(fmt.Errorf("the plugin of this machine names %s as the key to write under", j.Plugin.KeyID), "find out why with: hsm-kms status; its log says what keeps it from the current key"))
	}
}
