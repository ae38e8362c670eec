package stored

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// core are the resources of the core group.
const core = `configmaps endpoints events limitranges namespaces nodes persistentvolumeclaims persistentvolumes pods podtemplates
	replicationcontrollers resourcequotas secrets serviceaccounts services`

// internal are the places that an API server keeps for itself (k8s.io/kubernetes, pkg/controlplane and
// pkg/registry/core/rest): no API leads to them. They are named by their first part.
const internal = "masterleases peerserverleases ranges"

// groups are the API groups of kube-apiserver whose resources stand in etcd without their group (Kubernetes 1.29 to
// 1.37, pkg/registry/*/rest). Custom resources stand there with it, as do those of the two API extension groups.
var groups = [...]struct{ name, resources string }{
	{"admissionregistration.k8s.io", `mutatingadmissionpolicies mutatingadmissionpolicybindings mutatingwebhookconfigurations
		validatingadmissionpolicies validatingadmissionpolicybindings validatingwebhookconfigurations`},
	{"internal.apiserver.k8s.io", "storageversions"},
	{"apps", "controllerrevisions daemonsets deployments replicasets statefulsets"},
	{"autoscaling", "horizontalpodautoscalers"},
	{"batch", "cronjobs jobs"},
	{"certificates.k8s.io", "certificatesigningrequests clustertrustbundles podcertificaterequests"},
	{"coordination.k8s.io", "leasecandidates leases"},
	{"discovery.k8s.io", "endpointslices"},
	{"flowcontrol.apiserver.k8s.io", "flowschemas prioritylevelconfigurations"},
	{"lifecycle.k8s.io", "evictionrequests evictions"},
	{"networking.k8s.io", "clustercidrs ingressclasses ingresses ipaddresses networkpolicies servicecidrs"},
	{"node.k8s.io", "runtimeclasses"},
	{"policy", "poddisruptionbudgets"},
	{"rbac.authorization.k8s.io", "clusterrolebindings clusterroles rolebindings roles"},
	{"resource.k8s.io", `deviceclasses devicetaintrules podschedulingcontexts resourceclaimparameters resourceclaims
		resourceclaimtemplates resourceclasses resourceclassparameters resourcepoolstatusrequests resourceslices`},
	{"scheduling.k8s.io", "compositepodgroups podgroups priorityclasses workloads"},
	{"storage.k8s.io", "csidrivers csinodes csistoragecapacities storageclasses volumeattachments volumeattributesclasses"},
	{"storagemigration.k8s.io", "storageversionmigrations"},
}

// renamed are the resources whose place in etcd has another name (SpecialDefaultResourcePrefixes of
// k8s.io/kubernetes, pkg/kubeapiserver/default_storage_factory_builder.go).
var renamed = [...]struct{ stored, resource string }{
	{"controllers", "replicationcontrollers"},
	{"minions", "nodes"},
	{"ingress", "ingresses"},
	{"services/specs", "services"},
	{"services/endpoints", "endpoints"},
}

// Layout says where an API server keeps a resource, where that is not where kube-apiserver would.
type Layout struct {
	Resource string // as an EncryptionConfiguration names it: routes.route.openshift.io
	Prefix   string // of the keys of etcd, without a slash at the end: /openshift.io/routes
}

// Place is what an etcd key says of its object.
type Place struct {
	// Resource is named as in an EncryptionConfiguration: secrets, deployments.apps, widgets.example.com. What cannot be
	// attributed has the beginning of its key instead, such as /openshift.io/routes, which is no resource's name.
	Resource  string
	Known     bool // Resource is one
	Namespace string
	Name      string // empty: the key does not have the form of an object of the API
}

// Resources finds the resource that an etcd key belongs to. Make one with NewResources; it is never changed after that
// and may be shared.
type Resources struct {
	group   map[string]string // by resource; empty: the core group, or one of internal
	renamed map[string]string
	layouts []Layout // the longest prefix first
}

// NewResources returns what is known of Kubernetes, with further layouts. The error says which of them contradicts
// another, or kube-apiserver.
func NewResources(layouts ...Layout) (*Resources, error) {
	r := &Resources{group: map[string]string{}, renamed: map[string]string{}}
	for resource := range strings.FieldsSeq(core + " " + internal) {
		r.group[resource] = ""
	}
	for _, group := range groups {
		for resource := range strings.FieldsSeq(group.resources) {
			r.group[resource] = group.name
		}
	}
	for _, name := range renamed {
		r.renamed[name.stored] = name.resource
	}
	for _, l := range layouts {
		if at := slices.IndexFunc(layouts, func(other Layout) bool { return other.Prefix == l.Prefix && other.Resource != l.Resource }); at >= 0 {
			return nil, fmt.Errorf("%s is both %s and %s", l.Prefix, l.Resource, layouts[at].Resource)
		}
		if other := r.inside(l); other != "" {
			return nil, fmt.Errorf("%s is where %s are", l.Prefix, other)
		}
	}
	r.layouts = slices.SortedFunc(slices.Values(layouts), func(a, b Layout) int { return cmp.Compare(len(b.Prefix), len(a.Prefix)) })
	return r, nil
}

// inside returns the resource of kube-apiserver in whose place a layout lies, if it is another: whatever the API server's
// prefix is, which is not known here, the rest of the key may not read as that resource.
func (r *Resources) inside(l Layout) string {
	for rest := l.Prefix; ; {
		_, after, found := strings.Cut(rest, "/")
		if !found {
			return ""
		}
		first, _, _ := strings.Cut(after, "/")
		_, builtIn := r.group[first]
		if resource, known, _ := r.split(after + "/"); known && resource != l.Resource && (builtIn || r.renamed[first] != "") {
			return resource
		}
		rest = after
	}
}

// Kubernetes is NewResources without further layouts, which cannot fail.
func Kubernetes() *Resources {
	r, _ := NewResources()
	return r
}

// HasLayouts reports whether there are further layouts.
func (r *Resources) HasLayouts() bool { return len(r.layouts) > 0 }

// IsBuiltIn reports whether kube-apiserver itself serves what is stored of a group.
func IsBuiltIn(group string) bool {
	for _, g := range groups {
		if g.name == group {
			return true
		}
	}
	return slices.Contains([]string{"", "apiextensions.k8s.io", "apiregistration.k8s.io", "events.k8s.io"}, group)
}

// Names are the built-in resources, for suggestions.
func (r *Resources) Names() []string {
	var names []string
	for resource, group := range r.group {
		if slices.Contains(strings.Fields(internal), resource) {
			continue
		}
		names = append(names, strings.TrimSuffix(resource+"."+group, "."))
	}
	for _, l := range r.layouts {
		names = append(names, l.Resource)
	}
	slices.Sort(names)
	return names
}

// Of returns what the key of an object says. path is the part of key that follows the API server's prefix and its slash:
// secrets/NAMESPACE/NAME.
func (r *Resources) Of(key, path []byte) Place {
	for _, l := range r.layouts {
		if rest, ok := bytes.CutPrefix(key, []byte(l.Prefix)); ok && bytes.HasPrefix(rest, []byte("/")) {
			return named(l.Resource, true, string(rest[1:]))
		}
	}
	resource, known, rest := r.split(string(path))
	if !known {
		resource = string(key[:len(key)-len(path)]) + resource
	}
	return named(resource, known, rest)
}

// named reads NAMESPACE/NAME, or NAME.
func named(resource string, known bool, rest string) Place {
	place := Place{Resource: resource, Known: known}
	namespace, name, found := strings.Cut(rest, "/")
	if !found {
		namespace, name = "", rest
	}
	if known && name != "" && !strings.Contains(name, "/") && (!found || namespace != "") {
		place.Namespace, place.Name = namespace, name
	}
	return place
}

// split cuts a path into its resource and what follows. What is not known is named by its first part, or two.
func (r *Resources) split(path string) (resource string, known bool, rest string) {
	first, rest, found := strings.Cut(path, "/")
	if !found {
		return first, false, ""
	}
	second, third, _ := strings.Cut(rest, "/")
	if name, ok := r.renamed[first+"/"+second]; ok {
		return name, true, third
	}
	if strings.Contains(first, ".") { // a group: its name has a dot. Below it a second dot is another API server's layout
		if !isLabel(second) || !qualified(first) {
			return first + "/" + second, false, third
		}
		return second + "." + first, true, third
	}
	if name, ok := r.renamed[first]; ok {
		first = name
	}
	group, known := r.group[first]
	return strings.TrimSuffix(first+"."+group, "."), known, rest
}

// Matches reports whether a resource is among those that an entry of an EncryptionConfiguration names: secrets,
// widgets.example.com, *.example.com, "*." for the core group, "*.*" for all. A place that is no resource is in "*.*" alone.
func Matches(entry, resource string) bool {
	if strings.HasPrefix(resource, "/") {
		return entry == "*.*"
	}
	_, group, _ := strings.Cut(resource, ".")
	switch wanted, isWildcard := strings.CutPrefix(entry, "*."); {
	case !isWildcard:
		return strings.TrimSuffix(entry, ".") == resource || sameStore(entry, resource)
	case wanted == "*":
		return true
	default:
		return wanted == group
	}
}

// sameStore reports whether two names are of the one resource that has two names and one place: events of the core group and
// of events.k8s.io.
func sameStore(a, b string) bool {
	events := []string{"events", "events.events.k8s.io"}
	return slices.Contains(events, a) && slices.Contains(events, b)
}

// IsWildcard reports whether an entry names a group, or all, and no single resource.
func IsWildcard(entry string) bool { return strings.HasPrefix(entry, "*.") }

// CheckEntry reports what is wrong with the form of an entry: kube-apiserver would refuse it, or it could not match anything
// (k8s.io/apiserver v0.37.2, pkg/apis/apiserver/validation). Whether there is such a resource is not looked at.
func CheckEntry(entry string) error {
	resource, group, grouped := strings.Cut(entry, ".")
	switch {
	case entry == "":
		return fmt.Errorf("a name is empty")
	case entry == "*":
		return fmt.Errorf("%q is not a valid name: *. are all resources of the core group, *.* are all", entry)
	case strings.Contains(entry, "/"):
		return fmt.Errorf("%q is not a valid name: the form is RESOURCE or RESOURCE.GROUP, without a version", entry)
	case strings.ToLower(entry) != entry:
		return fmt.Errorf("%q is not a valid name: names have no capital letters", entry)
	case resource == "*" && (group == "" || group == "*"):
		return nil
	case group == "*":
		return fmt.Errorf("%q is not a valid name: one resource of all groups cannot be named", entry)
	case resource != "*" && !isLabel(resource), grouped && !isDomain(group):
		return fmt.Errorf("%q is not a valid name: the form is RESOURCE, RESOURCE.GROUP, *.GROUP, *. or *.*", entry)
	case group == "extensions":
		return fmt.Errorf("%q: the group extensions was removed from Kubernetes, and its resources are in other groups", entry)
	}
	return nil
}

// Covers reports whether a wildcard stands for an entry too, another wildcard or itself included.
func Covers(wide, entry string) bool {
	if !IsWildcard(wide) {
		return false
	}
	return wide == "*.*" || wide == entry || !IsWildcard(entry) && Matches(wide, strings.TrimSuffix(entry, "."))
}

// Overlap reports the first entry that another one of the same list covers, which kube-apiserver refuses, and the other.
func Overlap(entries []string) (wide, covered string, overlap bool) {
	for i, a := range entries {
		for j, b := range entries {
			if i != j && (a == b || Covers(a, b)) {
				return a, b, true
			}
		}
	}
	return "", "", false
}

// isDomain is qualified for names that may have one label: apps, batch.
func isDomain(name string) bool {
	return len(name) <= 253 && !slices.ContainsFunc(strings.Split(name, "."), func(label string) bool { return !isLabel(label) })
}
