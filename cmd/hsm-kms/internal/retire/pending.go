package retire

import (
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// withdrawMargin is the least time before its activation at which a pending key may still be withdrawn: later,
// a node whose clock is ahead may have sealed under it.
const withdrawMargin = 5 * time.Minute

func (j *judgement) margin() time.Duration { return max(withdrawMargin, 2*j.RefreshInterval) }

// pending: neither a clock, nor etcd, nor the plugin of this machine may have made the key current.
func (j *judgement) pending() {
	v := j.plan.Target
	j.plan.Before = v.Activation.Add(-j.margin())
	if err := mayWithdraw(v, j.margin(), j.Now); err != nil {
		j.refuse(err)
		if v.State == envelope.Current {
			return
		}
	}
	switch {
	case j.UsedErr != nil:
		j.refuse(hint.Wrap(fmt.Errorf("it is not clear whether the plugin of this machine was asked about %s: %w", j.KeyID, j.UsedErr), "run it as a user that can read the audit trail"))
	case j.Used != "":
		j.refuse(hint.Wrap(fmt.Errorf("%s is in use: the audit trail of this machine has it (%s)", j.KeyID, j.Used), "let it become current, then rotate again; if it is destroyed, what is under it is lost"))
	case j.AuditPath == "":
		j.warn("not proven: that the plugin of this machine never sealed under %s: audit.path is empty", j.KeyID)
	}
	if j.NoEtcd {
		j.warn("not proven: that nothing in etcd is under %s: etcd was not read (--no-etcd). What is under it is lost for good", j.KeyID)
		return
	}
	if j.EtcdErr != nil {
		j.refuse(hint.Wrap(fmt.Errorf("it is not clear whether anything in etcd is under %s: %w", j.KeyID, j.EtcdErr),
			"name etcd: --endpoints, --cacert, --cert, --key; where there is none, or none can be reached, and no node's clock was ever ahead: --no-etcd"))
		return
	}
	if j.Etcd == nil {
		return
	}
	j.warn("not proven: that no API server holds a DEK under %s that it has written nothing with yet. A node whose clock was ahead may have one: check that hsm-kms status names another key on every control-plane node, and that no node's audit trail has this one", j.KeyID)
	if gate.Clock(j.Etcd).IsZero() {
		j.warn("not proven: that no node's clock is ahead: no Lease of a control-plane node was found in plain text")
	}
	judged := gate.Case{
		KeyID: j.KeyID.String(), Pending: &gate.Pending{Activation: v.Activation, Margin: j.margin()}, Others: j.others(), Cluster: j.Cluster,
		Accepted: j.Accepted, Own: j.Etcd,
	}
	j.plan.Refusals = append(j.plan.Refusals, judged.Judge()...)
}

// clockIsPlausible refuses to judge what is pending by a clock that is behind: a key in use would look pending.
func clockIsPlausible(versions []envelope.Version, proven health.Proven, now time.Time) error {
	advice := "set this machine's clock right, then try again"
	if proven.At.After(now) {
		return hint.Wrap(fmt.Errorf("this machine's clock is behind: it says %s, and the plugin here proved a key at %s", now.UTC().Format(time.RFC3339), proven.At.UTC().Format(time.RFC3339)), advice)
	}
	for _, v := range versions {
		if v.State != envelope.Refused && !v.Activation.After(now) {
			return nil
		}
	}
	if len(versions) == 0 {
		return nil // there is nothing to judge, and the key is not there
	}
	return hint.Wrap(fmt.Errorf("by this machine's clock (%s) no key of the ring is in use yet", now.UTC().Format(time.RFC3339)), advice)
}

// mayWithdraw says what speaks against destroying a key that is not retained, by this machine's clock.
func mayWithdraw(v envelope.Version, margin time.Duration, now time.Time) error {
	if v.State == envelope.Current {
		return hint.Wrap(fmt.Errorf("%s is current and is never destroyed", v.ID), "rotate first: hsm-kms keys rotate")
	}
	switch left := v.Activation.Sub(now); {
	case left < 0:
		return hint.Wrap(fmt.Errorf("%s was to become current %s ago: a node may have sealed under it", v.ID, -left.Round(time.Second)),
			"rotate again: hsm-kms keys rotate")
	case left < margin:
		return hint.Wrap(fmt.Errorf("%s becomes current in %s: within %s of it a node may have sealed under it", v.ID, left.Round(time.Second), margin),
			"let it become current and rotate again")
	}
	return nil
}
