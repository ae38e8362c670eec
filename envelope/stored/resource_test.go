package stored_test

import (
	"testing"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

func TestResources(t *testing.T) {
	t.Parallel()
	r := stored.NewResources()
	for key, want := range map[string]string{
		"secrets/default/one":                                  "secrets",
		"configmaps/kube-system/a":                             "configmaps",
		"deployments/default/web":                              "deployments.apps",
		"leases/kube-node-lease/n1":                            "leases.coordination.k8s.io",
		"example.com/widgets/default/w":                        "widgets.example.com",
		"apiextensions.k8s.io/customresourcedefinitions/a.b.c": "customresourcedefinitions.apiextensions.k8s.io",
		"apiregistration.k8s.io/apiservices/v1.":               "apiservices.apiregistration.k8s.io",
		"minions/node-1":                                       "nodes",
		"controllers/default/rc":                               "replicationcontrollers",
		"ingress/default/i":                                    "ingresses.networking.k8s.io",
		"services/specs/default/s":                             "services",
		"services/endpoints/default/s":                         "endpoints",
		"ranges/serviceips":                                    "ranges",
		"events/default/e":                                     "events",
		"masterleases/10.0.0.1":                                "masterleases",
		"health":                                               "health",
		"":                                                     "",
		"/":                                                    "",
		"example.com":                                          "example.com",
		"example.com/":                                         "example.com",
		"\x1b[2J/x":                                            "\x1b[2J",
	} {
		if got := r.Of([]byte(key)); got != want {
			t.Errorf("Of(%q) = %q, want %q", key, got, want)
		}
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	r := stored.NewResources()
	for key, want := range map[string][3]string{
		"secrets/default/one":                                  {"secrets", "default", "one"},
		"deployments/default/web":                              {"deployments.apps", "default", "web"},
		"namespaces/default":                                   {"namespaces", "", "default"},
		"minions/node-1":                                       {"nodes", "", "node-1"},
		"clusterroles/system:node":                             {"clusterroles.rbac.authorization.k8s.io", "", "system:node"},
		"services/specs/default/s":                             {"services", "default", "s"},
		"services/endpoints/default/s":                         {"endpoints", "default", "s"},
		"example.com/widgets/default/w":                        {"widgets.example.com", "default", "w"},
		"example.com/gadgets/g":                                {"gadgets.example.com", "", "g"},
		"apiextensions.k8s.io/customresourcedefinitions/a.b.c": {"customresourcedefinitions.apiextensions.k8s.io", "", "a.b.c"},
	} {
		resource, namespace, name, ok := r.Split([]byte(key))
		if got := [3]string{resource, namespace, name}; !ok || got != want {
			t.Errorf("Split(%q) = %q, %v, want %q", key, got, ok, want)
		}
	}
	for key, want := range map[string]string{
		"secrets/default/one/two": "secrets", "secrets/default/": "secrets", "secrets//one": "secrets", "secrets/": "secrets",
		"health": "health", "": "", "/": "", "example.com/": "example.com", "example.com/widgets": "widgets.example.com",
	} {
		if resource, _, _, ok := r.Split([]byte(key)); ok || resource != want {
			t.Errorf("Split(%q) = %q, %v, want %q and no object", key, resource, ok, want)
		}
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	r := stored.NewResources()
	for _, c := range []struct {
		entry, resource string
		want            bool
	}{
		{"secrets", "secrets", true},
		{"secrets", "configmaps", false},
		{"secrets", "secrets.example.com", false},
		{"widgets.example.com", "widgets.example.com", true},
		{"*.example.com", "widgets.example.com", true},
		{"*.example.com", "widgets.other.com", false},
		{"*.", "secrets", true},
		{"*.", "deployments.apps", false},
		{"*.*", "secrets", true},
		{"*.*", "widgets.example.com", true},
		{"events.events.k8s.io", "events", true},
		{"*.apps", "deployments.apps", true},
	} {
		if got := r.Matches(c.entry, c.resource); got != c.want {
			t.Errorf("Matches(%q, %q) = %v", c.entry, c.resource, got)
		}
	}
}
