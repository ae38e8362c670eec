package gate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// clusters: etcd holds the objects of the cluster that the ring belongs to, and of no other. Two clusters that share a
// ring look clean one by one.
func (c *Case) clusters(v *verdict) {
	now, unknown := c.Own.Clusters()
	if c.File != nil {
		if then, _ := c.File.Report.Clusters(); len(then) > 0 && len(now) > 0 && !slices.Equal(then, now) {
			v.against(sameFlags, "the report %s is of the cluster %s, and etcd holds the cluster %s now", c.FileName, names(then), names(now))
		}
	}
	others := slices.DeleteFunc(slices.Clone(now), func(uid string) bool { return uid == c.Cluster })
	const who = "see which cluster's configuration names this ring, and what its etcd holds under the key: hsm-kms etcd report; a ring belongs to one cluster"
	switch {
	case c.Cluster != "" && len(others) > 0:
		v.against(who, "%s", evidence.OtherCluster(c.Cluster, now))
	case len(now) > 1:
		v.against(who, "etcd holds several clusters: %s", names(now))
	case c.Accepted.SoleCluster:
	case c.Cluster == "":
		v.against("bind it to its cluster: hsm-kms keys bind --kubeconfig FILE; or check that no other cluster's configuration names this ring, and that no etcd but this one has anything under it, then add: --sole-cluster",
			"the ring is bound to no cluster: another one may use its keys")
	case len(now) == 0 || unknown:
		v.against("name the --prefix and the etcd that hold the namespaces; where they are encrypted, check that this is the cluster's etcd, then add: --sole-cluster",
			"the ring belongs to the cluster %s, and whether this is its etcd is not clear: no namespace kube-system was found in plain text, or not each one", evidence.Printable(c.Cluster))
	}
}

func names(uids []string) string { return evidence.Printable(strings.Join(uids, ", ")) }

// clocks: by no clock of a control-plane node, as its Lease says, is the key about to become current. Nodes whose clock
// was ahead before, and plugins on machines without a Lease, are not seen.
func (c *Case) clocks(v *verdict) {
	latest := Clock(c.Own)
	if latest.IsZero() {
		return
	}
	if left := c.Pending.Activation.Sub(latest); left < c.Pending.Margin {
		v.against("let the key become current and rotate again; a clock that is ahead: set it right",
			"the clock of a control-plane node said %s when it renewed its Lease: by it %s, and within %s of that it may have written under the key",
			second(latest), becomes(left), c.Pending.Margin)
	}
}

func becomes(left time.Duration) string {
	if left < 0 {
		return fmt.Sprintf("the key became current %s before", -left.Round(time.Second))
	}
	return fmt.Sprintf("the key becomes current in %s", left.Round(time.Second))
}

// Clock is the newest renewal of a Lease; zero: none is known.
func Clock(r *evidence.Report) time.Time {
	var latest time.Time
	for _, source := range r.Sources {
		if at, err := time.Parse(time.RFC3339Nano, source.Clock); err == nil && at.After(latest) {
			latest = at
		}
	}
	return latest
}

// maxJitter is by how much the newest renewals of two reports may be closer than the reports: Leases are renewed every
// few seconds.
const maxJitter = 5 * time.Minute

// nodesClocks: the nodes' clocks agree that Settle has passed. This machine's own may have been set forward between the
// two reports.
func (c *Case) nodesClocks(v *verdict) {
	then, now := Clock(c.File.Report), Clock(c.Own)
	if then.IsZero() || now.IsZero() {
		return
	}
	if apart := now.Sub(then); apart+maxJitter < c.Settle {
		v.against("set the clocks of all nodes and of this machine right, then make another report and come back after --settle",
			"by the Leases of the control-plane nodes %s lie between the report %s and now, and %s (--settle) must: a clock was set, or no API server ran",
			apart.Round(time.Second), c.FileName, c.Settle)
	}
}
