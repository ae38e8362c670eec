package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	cbor "k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
)

// UnknownCluster stands in Reading.ClusterUIDs for a kube-system namespace whose UID cannot be read.
const UnknownCluster = "unknown"

// maxUID bounds the UID of a namespace in bytes; Kubernetes gives 36.
const maxUID = 128

// SystemNamespace is where an API server keeps, below its prefix, what tells one cluster from another, and systemLeases its
// nodes' clocks.
const (
	SystemNamespace = "namespaces/kube-system"
	systemLeases    = "leases/kube-system/"
)

// allLeases are the Leases of all namespaces: hsm-kms operate chooses that of its own.
const allLeases = "leases/"

// NodeAnnotation of a Lease has what hsm-kms operate of a node publishes: JSON, of which a report takes NodeHold, in the field
// hold.
const NodeAnnotation = "hsm-kms.io/plugin"

// NodeHold is what a node publishes of its outage hold. Field names are a contract between versions.
type NodeHold struct {
	Limit time.Duration `json:"limit"`          // outageHold
	Until time.Time     `json:"until,omitzero"` // on hold, until then at the latest; zero: it is not
}

// maxOutageHold bounds what is believed of a Lease; the configuration takes no more.
const maxOutageHold = 72 * time.Hour

// Longest is how long the hold can last.
func (h *NodeHold) Longest() time.Duration { return min(max(h.Limit, 0), maxOutageHold) }

// holdIn is the longest hold of a Lease; 0: it has none.
func holdIn(lease *coordinationv1.Lease) time.Duration {
	var published struct {
		Hold NodeHold `json:"hold"`
	}
	if json.Unmarshal([]byte(lease.Annotations[NodeAnnotation]), &published) != nil {
		return 0
	}
	return published.Hold.Longest()
}

// cluster is what the objects of one source say of the Kubernetes clusters whose they are.
type cluster struct {
	uids  []string
	clock time.Time
	hold  time.Duration
}

// look takes note of the objects that say something. Older revisions say nothing of now.
func (c *cluster) look(o *Object) {
	switch {
	case o.Past || o.Deleted:
	case string(o.Path) == SystemNamespace:
		c.uids = append(c.uids, ClusterUID(o.Value))
	case bytes.HasPrefix(o.Path, []byte(allLeases)):
		isSystem := bytes.HasPrefix(o.Path, []byte(systemLeases))
		var lease coordinationv1.Lease
		if !isSystem && !bytes.Contains(o.Value, []byte(NodeAnnotation)) || decode(o.Value, "Lease", &lease) != nil {
			return
		}
		c.hold = max(c.hold, holdIn(&lease))
		if at := lease.Spec.RenewTime; isSystem && at != nil && at.After(c.clock) {
			c.clock = at.Time
		}
	}
}

func (c *cluster) into(reading *Reading) {
	slices.Sort(c.uids)
	reading.ClusterUIDs = append([]string{}, slices.Compact(c.uids)...)
	if !c.clock.IsZero() {
		reading.Clock = c.clock.UTC().Format(time.RFC3339Nano)
	}
	if c.hold > 0 {
		reading.OutageHold = c.hold.String()
	}
}

// Clusters are the UIDs of the Kubernetes clusters that a report is about, sorted, each once. unknown: there is one whose UID
// cannot be read.
func (r *Report) Clusters() (known []string, unknown bool) {
	for _, source := range r.Sources {
		for _, uid := range source.ClusterUIDs {
			if uid == UnknownCluster {
				unknown = true
			} else {
				known = append(known, uid)
			}
		}
	}
	slices.Sort(known)
	return slices.Compact(known), unknown
}

// ofAnotherCluster are the findings of a report that is not about the cluster that the ring belongs to.
func (r *Report) ofAnotherCluster(ring string) []Finding {
	known, _ := r.Clusters()
	if ring == "" || len(known) == 0 || slices.Equal(known, []string{ring}) {
		return nil
	}
	return []Finding{{Problem: OtherCluster(ring, known)}}
}

// OtherCluster says that etcd holds another cluster than the one that the ring belongs to.
func OtherCluster(ring string, held []string) string {
	printed := make([]string, 0, len(held))
	for _, uid := range held {
		printed = append(printed, Printable(uid))
	}
	return fmt.Sprintf("the ring belongs to the cluster %s (UID of its namespace kube-system), and etcd holds the cluster %s", Printable(ring), strings.Join(printed, ", "))
}

// ClusterUID is the UID in a namespace as the API server stores it, or UnknownCluster.
func ClusterUID(value []byte) string {
	var namespace corev1.Namespace
	if decode(value, "Namespace", &namespace) != nil || namespace.UID == "" || len(namespace.UID) > maxUID {
		return UnknownCluster
	}
	return string(namespace.UID)
}

var errOtherKind = errors.New("not an object of that kind in plain text")

// decode reads an object of a built-in kind from the forms in which an API server stores it in plain text.
func decode(value []byte, kind string, into interface{ Unmarshal([]byte) error }) error {
	if rest, ok := bytes.CutPrefix(value, []byte("k8s\x00")); ok {
		var object runtime.Unknown
		if err := object.Unmarshal(rest); err != nil {
			return err
		}
		if object.Kind != kind {
			return errOtherKind
		}
		return into.Unmarshal(object.Raw)
	}
	if bytes.HasPrefix(value, []byte{0xd9, 0xd9, 0xf7}) { // CBOR, self-described
		var object map[string]any
		if err := cbor.Unmarshal(value, &object); err != nil {
			return err
		}
		var err error
		if value, err = json.Marshal(object); err != nil {
			return err
		}
	}
	var is struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(value, &is); err != nil {
		return err
	}
	if is.Kind != kind {
		return errOtherKind
	}
	return json.Unmarshal(value, into)
}
