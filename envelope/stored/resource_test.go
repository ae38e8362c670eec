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
