package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// cluster compares the cluster that the ring is bound to with the one that etcd holds, if etcd was named.
func (d *doctor) cluster(ctx context.Context, set *hsm.Set) {
	const check = "cluster"
	const who = "see which cluster's configuration names this ring, and which key_ids its etcd holds: hsm-kms etcd report; a ring belongs to one cluster"
	bound, err := hsm.ClusterOf(set.Bindings(ctx))
	if err != nil {
		d.warn(check, "", fmt.Sprintf("it is not clear which cluster the ring belongs to: %v", err), who)
		return
	}
	if d.ClusterUIDs == nil {
		if bound == "" {
			d.pass(check, "", "the ring is bound to no cluster, so that keys retire cannot compare it with etcd: hsm-kms keys bind -h")
			return
		}
		d.pass(check, "", "the ring belongs to the cluster "+bound+"; etcd was not named, to be compared")
		return
	}
	held, err := d.ClusterUIDs(ctx)
	others := slices.DeleteFunc(slices.Clone(held), func(uid string) bool { return uid == bound || uid == evidence.UnknownCluster })
	switch {
	case err != nil:
		d.warn(check, "", fmt.Sprintf("it is not known which cluster etcd holds: %v", err), "see --endpoints, --cacert, --cert and --key")
	case bound == "":
		d.pass(check, "", "the ring is bound to no cluster, so that it cannot be compared with etcd: hsm-kms keys bind -h")
	case len(others) > 0:
		d.warn(check, "", evidence.OtherCluster(bound, others), who)
	case !slices.Contains(held, bound):
		d.pass(check, "", "the ring belongs to the cluster "+bound+"; etcd has no namespace kube-system in plain text, to be compared")
	default:
		d.pass(check, "", "the ring belongs to the cluster "+bound+", which etcd holds")
	}
}
