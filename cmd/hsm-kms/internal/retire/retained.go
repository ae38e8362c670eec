package retire

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// retained: which key is current must be clear, here and on every node whose token this machine knows.
func (j *judgement) retained() {
	if j.WrittenRing != "" {
		j.retainedOfReadRing()
		return
	}
	several := len(j.Tokens)+len(j.Accepted.TokensLost) > 1 // the nodes waited for a token that is lost, too
	j.plan.Successor = successor(j.View.Versions, j.KeyID, several)
	if j.NoEtcd {
		j.refuse(hint.Wrap(fmt.Errorf("--no-etcd is for pending keys, and %s was current", j.KeyID), "leave --no-etcd out"))
	}
	view := j.View
	switch {
	case view.Problem != nil || view.Current == nil:
		j.refuse(fmt.Errorf("it is not clear which key is current: %w", cmp.Or(view.Problem, envelope.ErrNotProven)))
		return
	case view.Deferred != nil:
		j.refuse(hint.Wrap(fmt.Errorf("it is not clear which key is current: %s is due, and held back: %s", view.Deferred.ID, view.Deferred.WhyHeldBack()),
			"find out why with: hsm-kms status and hsm-kms doctor; fix the token, or copy the key to it"))
	}
	for _, token := range j.Tokens {
		switch {
		case slices.Contains(view.Current.Tokens, token.Name) && slices.Contains(view.Missing(), token.Name):
			j.refuse(hint.Wrap(fmt.Errorf("the current key %s is on the token %s and cannot be used there: a node that has only that one goes on writing under an older key", view.Current.ID, token.Name),
				"find out why with: hsm-kms doctor; repair the copy, wait until every node names the key, then make another report"))
		case !slices.Contains(view.Current.Tokens, token.Name):
			j.refuse(hint.Wrap(fmt.Errorf("the current key %s is not on the token %s: a node that has only that one goes on writing under an older key", view.Current.ID, token.Name),
				"copy the key to it with the vendor's tool, wait until every node names it, then make another report"))
		}
	}
}

// successor is when the key that came after id became current, on every node that was not told otherwise by one of its tokens;
// zero: unknown. With several tokens a node to which one was absent went on writing under id until the end of the grace.
// A key that shares the CKA_ID of id came with it, not after it.
func successor(versions []envelope.Version, id envelope.KeyID, several bool) time.Time {
	own, _ := envelope.ActivationOf([]byte(id.Version))
	var first time.Time
	for _, v := range versions {
		inUse := v.State == envelope.Current || v.State == envelope.Retained
		if !inUse || !v.Activation.After(own) || v.Activation.IsZero() {
			continue
		}
		at := v.Activation
		if several && !v.ID.Emergency() {
			at = v.Until
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// howToReport is how the file of --evidence is made.
func (j *judgement) howToReport() string {
	if j.WrittenRing != "" {
		return "hsm-kms etcd migrate -o json > migrate.json; --evidence migrate.json"
	}
	return "hsm-kms etcd report -o json > report.json; --evidence report.json"
}

// evidence notes what reports and snapshots say against destroying a key that was current.
func (j *judgement) evidence() {
	j.plan.Rehearsed = j.Rehearsed
	if j.AuditPath == "" {
		j.refuse(hint.Wrap(errors.New("audit.path is empty in the configuration, and without a record no key that was current is destroyed"), "set audit.path"))
	}
	if j.EvidenceFile == "" {
		j.refuse(hint.Wrap(fmt.Errorf("%s was current: data in etcd, or in a backup, may need it, and there is no evidence to the contrary", j.KeyID),
			"keep it, which costs nothing; or make evidence, and name it a day later: "+j.howToReport()))
		return
	}
	if !j.Rehearsed {
		j.warn("refuseKeys of this machine's configuration does not name %s: its retirement was not rehearsed here", j.KeyID)
	}
	if j.Settle < gate.DefaultSettle {
		j.warn("--settle %s is shorter than %s: an API server that still has a DEK of this key may write under it, and what it writes is lost for good",
			j.Settle, gate.DefaultSettle)
	}
	if j.Named == 0 {
		j.warn("no --snapshot is named: no backup was looked at, and one that needs %s can never be restored", j.KeyID)
	}
	if j.NotEvidence != nil {
		j.refuse(hint.Wrap(j.NotEvidence, "make one with: "+j.howToReport()))
	}
	if j.Evidence == nil || j.Etcd == nil {
		return
	}
	judged := gate.Case{
		KeyID: j.KeyID.String(), Successor: j.plan.Successor, WrittenRing: j.WrittenRing, Others: j.others(), Cluster: j.Cluster, Accepted: j.Accepted,
		Settle: j.Settle, FileName: j.EvidenceFile, File: j.Evidence, Own: j.Etcd, Snapshots: j.Snapshots,
	}
	j.plan.Refusals = append(j.plan.Refusals, judged.Judge()...)
}
