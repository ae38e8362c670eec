package stored

// OpenShift is where openshift-apiserver and oauth-apiserver keep their resources (openshift/openshift-apiserver,
// pkg/cmd/openshift-apiserver/openshiftapiserver/etcd.go; openshift/oauth-apiserver, pkg/cmd/oauth-apiserver/cmd.go; both of
// February 2026). kube-apiserver has /kubernetes.io there, and the usual layout.
func OpenShift() []Layout {
	var all []Layout
	for _, l := range [...]Layout{
		{"deploymentconfigs.apps.openshift.io", "deploymentconfigs"},
		{"builds.build.openshift.io", "builds"},
		{"buildconfigs.build.openshift.io", "buildconfigs"},
		{"images.image.openshift.io", "images"},
		{"imagestreams.image.openshift.io", "imagestreams"},
		{"clusternetworks.network.openshift.io", "registry/sdnnetworks"},
		{"egressnetworkpolicies.network.openshift.io", "registry/egressnetworkpolicy"},
		{"hostsubnets.network.openshift.io", "registry/sdnsubnets"},
		{"netnamespaces.network.openshift.io", "registry/sdnnetnamespaces"},
		{"oauthaccesstokens.oauth.openshift.io", "oauth/accesstokens"},
		{"oauthauthorizetokens.oauth.openshift.io", "oauth/authorizetokens"},
		{"oauthclients.oauth.openshift.io", "oauth/clients"},
		{"oauthclientauthorizations.oauth.openshift.io", "oauth/clientauthorizations"},
		{"routes.route.openshift.io", "routes"},
		{"rangeallocations.security.openshift.io", "rangeallocations"},
		{"brokertemplateinstances.template.openshift.io", "brokertemplateinstances"},
		{"templates.template.openshift.io", "templates"},
		{"templateinstances.template.openshift.io", "templateinstances"},
		{"groups.user.openshift.io", "groups"},
		{"identities.user.openshift.io", "useridentities"},
		{"users.user.openshift.io", "users"},
	} {
		all = append(all, Layout{l.Resource, OpenShiftPrefix + "/" + l.Prefix})
	}
	return all
}

// OpenShiftPrefix begins the keys of OpenShift's own API servers.
const OpenShiftPrefix = "/openshift.io"
