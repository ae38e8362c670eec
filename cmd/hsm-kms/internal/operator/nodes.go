package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
)

// protocol is the version of what nodes publish. Instances that do not share one do not understand each other.
const protocol = 1

// A node's Lease, and what it has of hsm-kms.
const (
	nodeLabel      = "hsm-kms.io/node"
	nodeAnnotation = evidence.NodeAnnotation
)

// maxPublished bounds what a node publishes, in bytes, and maxNodes how many nodes there are.
const (
	maxPublished = 16 << 10
	maxNodes     = 100
)

func nodeLease(node string) string { return "node-" + node }

// node is what a node publishes: JSON in an annotation of its Lease. Field names are a contract between versions.
type node struct {
	Protocol int       `json:"protocol"`
	Version  string    `json:"version"`
	Hostname string    `json:"hostname"`
	Ring     string    `json:"ring"`
	Problem  string    `json:"problem,omitempty"` // of the plugin; empty: ok
	KeyID    string    `json:"keyID,omitempty"`
	Pending  []pending `json:"pending,omitempty"`
	Retained []string  `json:"retained,omitempty"`
	// Hold is there while outageHold is on.
	Hold *evidence.NodeHold `json:"hold,omitempty"`
	// CertificateEnds is when the identity of this instance ends; zero: it has no certificate.
	CertificateEnds time.Time `json:"certificateEnds,omitzero"`
}

type pending struct {
	KeyID    string    `json:"keyID"`
	Ready    bool      `json:"ready,omitempty"`
	Deferred bool      `json:"deferred,omitempty"`
	Why      string    `json:"why,omitempty"`
	Until    time.Time `json:"until,omitzero"`
}

// nodeOf is what this node publishes of its plugin's answer.
func nodeOf(cfg *Config, answer kmsplugin.StatusAnswer, err error) node {
	n := node{Protocol: protocol, Version: cfg.Version, Hostname: cfg.Hostname, Ring: cfg.Ring, KeyID: answer.KeyID}
	switch {
	case err != nil:
		n.Problem = words(err)
	case answer.Healthz != "ok":
		n.Problem = evidence.Printable(answer.Healthz)
	}
	if h := answer.Hold; h != nil {
		if n.Hold = (&evidence.NodeHold{Limit: h.Limit}); h.Holding {
			n.Hold.Until = h.Until
		}
	}
	for _, p := range answer.Pending {
		n.Pending = append(n.Pending, pending{KeyID: p.Key.String(), Ready: p.Ready, Deferred: p.Deferred, Why: evidence.Printable(p.Why), Until: p.Until})
	}
	for _, id := range answer.Retained {
		n.Retained = append(n.Retained, id.String())
	}
	return n
}

func (n node) equal(other node) bool { return reflect.DeepEqual(n, other) }

func (n node) text() (string, error) {
	data, err := json.Marshal(n)
	if err != nil {
		return "", fmt.Errorf("encoding what the plugin says: %w", err)
	}
	return string(data), nil
}

// state is what Next sees of it. What is not well formed is a problem of that node.
func (n node) state(name string, ring string) state.Node {
	out := state.Node{Name: name, Problem: evidence.Printable(n.Problem)}
	switch {
	case n.Protocol != protocol:
		out.Unknown = fmt.Sprintf("it speaks protocol %d, and this version protocol %d: bring all nodes to one version of hsm-kms", n.Protocol, protocol)
		return out
	case n.Ring != ring:
		out.Unknown = fmt.Sprintf("it publishes the ring %s, and the leader's is %s: where the HSM is being replaced, go on to the last node; two rings need a --namespace each", evidence.Printable(n.Ring), ring)
		return out
	}
	if n.Hold != nil {
		if out.OutageHold = n.Hold.Longest(); !n.Hold.Until.IsZero() {
			out.Holding = "until " + n.Hold.Until.UTC().Format(time.RFC3339) + " at the latest"
		}
	}
	key := func(text string) state.Key {
		id, err := envelope.ParseKeyID(text)
		if err != nil || id.Ring != ring {
			if out.Problem == "" {
				out.Problem = fmt.Sprintf("it names %q, which is no key_id of the ring", evidence.Printable(text))
			}
			return state.Key{}
		}
		at, _ := envelope.ActivationOf([]byte(id.Version))
		return state.Key{ID: text, Activates: at}
	}
	if out.Current = (state.Key{}); n.Problem == "" || n.KeyID != "" {
		if out.Current = key(envelope.KeyOf(n.KeyID)); out.Current.ID != n.KeyID && out.Current.ID != "" {
			out.Holding = cmp.Or(out.Holding, "it names "+n.KeyID)
		}
	}
	for _, p := range n.Pending {
		out.Pending = append(out.Pending, state.Pending{Key: key(p.KeyID), Ready: p.Ready, Deferred: p.Deferred, Why: evidence.Printable(p.Why), Until: p.Until})
	}
	for _, id := range n.Retained {
		out.Retained = append(out.Retained, key(id))
	}
	return out
}

// nodes are this node, as it is, and the others by their Leases.
func (o *Operator) nodes(ctx context.Context) ([]state.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	o.mu.Lock()
	self := o.self
	o.mu.Unlock()
	nodes := []state.Node{self.state(o.cfg.Node, o.cfg.Ring)}
	o.hostnames, o.ending = map[string]bool{strings.ToLower(self.Hostname): true}, ""
	o.ends(o.cfg.Node, self.CertificateEnds)
	now, listed := time.Now(), map[string]bool{}
	err := o.kube.List(ctx, o.leases(), nodeLabel+"=true", func(item []byte) error {
		var lease coordinationv1.Lease
		if err := json.Unmarshal(item, &lease); err != nil {
			return fmt.Errorf("decoding the Lease of a node: %w", err)
		}
		if lease.Name == nodeLease(o.cfg.Node) || !strings.HasPrefix(lease.Name, nodeLease("")) { // another one that has our label
			return nil
		}
		if len(nodes) == maxNodes {
			return fmt.Errorf("more than %d nodes publish in the namespace %s", maxNodes, o.cfg.Migrate.Namespace)
		}
		nodes, listed[lease.Name] = append(nodes, o.other(&lease, now)), true
		return nil
	})
	if err == nil {
		o.mu.Lock()
		o.sights.keep(nodeLease(""), listed)
		o.mu.Unlock()
	}
	slices.SortFunc(nodes, func(a, b state.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, err
}

// other is another node by its Lease.
func (o *Operator) other(lease *coordinationv1.Lease, now time.Time) state.Node {
	name := evidence.Printable(strings.TrimPrefix(lease.Name, nodeLease("")))
	o.mu.Lock()
	sight := o.sights.see(lease.Name, lease, now)
	o.mu.Unlock()
	validity := validityOf(lease, o.cfg.validity())
	switch {
	case now.Sub(sight.At) > validity:
		return state.Node{Name: name, Unknown: fmt.Sprintf("its Lease has not changed for %s", validity)} // the same words at each pass
	case !sight.Changed:
		return state.Node{Name: name, Unknown: "its Lease was not seen to change yet", Until: sight.At.Add(validity)}
	}
	var n node
	text := lease.Annotations[nodeAnnotation]
	if len(text) > maxPublished || json.Unmarshal([]byte(text), &n) != nil {
		return state.Node{Name: name, Unknown: "its Lease does not say what its plugin says"}
	}
	o.hostnames[strings.ToLower(n.Hostname)] = true
	o.ends(name, n.CertificateEnds)
	return n.state(name, o.cfg.Ring)
}

// ends notes a node whose certificate ends soon.
func (o *Operator) ends(name string, at time.Time) {
	if !at.IsZero() && time.Until(at) < kubeapi.EndsSoon && o.ending == "" {
		o.ending = fmt.Sprintf("the certificate of hsm-kms operate on %s ends at %s; renew it: docs/operate.md#renew-the-identity", name, at.UTC().Format(time.RFC3339))
	}
}

// sight is when a Lease was seen to change last, by this machine's clock: those of the others may be wrong.
type sight struct {
	Version string    `json:"version"` // resourceVersion
	At      time.Time `json:"at"`
	Changed bool      `json:"changed"` // it was seen with another version before: its writer lives
}

// sights are by name of Lease.
type sights map[string]sight

// see takes note of a Lease. A clock that went back makes what was seen new.
func (s sights) see(name string, lease *coordinationv1.Lease, now time.Time) sight {
	was, known := s[name]
	switch {
	case !known:
		s[name] = sight{Version: lease.ResourceVersion, At: now}
	case was.Version != lease.ResourceVersion:
		s[name] = sight{Version: lease.ResourceVersion, At: now, Changed: true}
	case was.At.After(now):
		s[name] = sight{Version: was.Version, At: now}
	}
	return s[name]
}

// keep forgets the Leases with the prefix that are there no longer: there is no end of new names.
func (s sights) keep(prefix string, listed map[string]bool) {
	maps.DeleteFunc(s, func(name string, _ sight) bool { return strings.HasPrefix(name, prefix) && !listed[name] })
}

// validityOf is how long a Lease counts, as its writer says, and at most maxValidity.
func validityOf(lease *coordinationv1.Lease, ours time.Duration) time.Duration {
	if lease.Spec.LeaseDurationSeconds == nil || *lease.Spec.LeaseDurationSeconds <= 0 {
		return ours
	}
	return min(maxValidity, time.Duration(*lease.Spec.LeaseDurationSeconds)*time.Second)
}

// maxValidity is four of the longest interval.
const maxValidity = unknownAfter * time.Hour

const sightsFile = "seen.json"

// loadSights reads what an earlier Once saw. What cannot be read is seen for the first time again.
func loadSights(dir string) sights {
	s := sights{}
	data, err := os.ReadFile(filepath.Join(dir, sightsFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && json.Unmarshal(data, &s) != nil {
		return sights{}
	}
	return s
}

func (s sights) save(dir string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding what was seen: %w", err)
	}
	return atomicfile.Replace(filepath.Join(dir, sightsFile), data, 0o644)
}
