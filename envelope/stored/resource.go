package stored

import (
	"slices"
	"strings"
)

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

// Resources finds the resource that an etcd key belongs to. Make one with NewResources; it is never changed after that
// and may be shared.
type Resources struct {
	group   map[string]string // by resource; without an entry: the core group, or unknown
	renamed map[string]string
}

// NewResources returns what is known of Kubernetes.
func NewResources() *Resources {
	r := &Resources{group: map[string]string{}, renamed: map[string]string{}}
	for _, group := range groups {
		for resource := range strings.FieldsSeq(group.resources) {
			r.group[resource] = group.name
		}
	}
	for _, name := range renamed {
		r.renamed[name.stored] = name.resource
	}
	return r
}

// Of returns the resource of the object under key, as an EncryptionConfiguration names it: secrets, deployments.apps,
// widgets.example.com. The key is given without etcd's prefix and its slash: secrets/NAMESPACE/NAME. What follows
// neither form, as Kubernetes' own ranges and leases of API servers do, is named by its first part.
func (r *Resources) Of(key []byte) string {
	resource, _ := r.split(string(key))
	return resource
}

// Split returns the resource as Of does, and the namespace (empty: the object has none) and name of the object under key.
// ok is false for what has not the form of an object of the API, which is then no more than its resource.
func (r *Resources) Split(key []byte) (resource, namespace, name string, ok bool) {
	resource, rest := r.split(string(key))
	namespace, name, found := strings.Cut(rest, "/")
	if !found {
		namespace, name = "", rest
	}
	if name == "" || strings.Contains(name, "/") || found && namespace == "" {
		return resource, "", "", false
	}
	return resource, namespace, name, true
}

// split cuts a key into its resource and what follows: NAMESPACE/NAME, or NAME.
func (r *Resources) split(key string) (resource, rest string) {
	first, rest, found := strings.Cut(key, "/")
	if !found {
		return first, ""
	}
	second, third, _ := strings.Cut(rest, "/")
	if name, ok := r.renamed[first+"/"+second]; ok {
		return name, third
	}
	if strings.Contains(first, ".") && second != "" { // a group: its name always has a dot
		return second + "." + first, third
	}
	if name, ok := r.renamed[first]; ok {
		first = name
	}
	if group := r.group[first]; group != "" {
		return first + "." + group, rest
	}
	return first, rest
}

// Matches tells whether a resource is among those that an entry of an EncryptionConfiguration names: secrets,
// widgets.example.com, *.example.com, "*." for the core group, "*.*" for all.
func (r *Resources) Matches(entry, resource string) bool {
	_, group, _ := strings.Cut(resource, ".")
	switch wanted, isWildcard := strings.CutPrefix(entry, "*."); {
	case !isWildcard:
		return entry == resource || r.sameStore(entry, resource)
	case wanted == "*":
		return true
	default:
		return wanted == group
	}
}

// sameStore knows the one resource that has two names and one place: events of the core group and of events.k8s.io.
func (r *Resources) sameStore(a, b string) bool {
	events := []string{"events", "events.events.k8s.io"}
	return slices.Contains(events, a) && slices.Contains(events, b)
}
