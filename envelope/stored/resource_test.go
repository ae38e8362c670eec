package stored_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// of splits a key below /registry.
func of(r *stored.Resources, path string) stored.Place {
	return r.Of([]byte("/registry/"+path), []byte(path))
}

// Every resource of kube-apiserver is told from where it really is.
func TestKubernetesPaths(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	r, n := stored.Kubernetes(), 0
	for line := range strings.Lines(string(data)) {
		key, resource, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(line, "#") {
			continue
		}
		n++
		path := strings.TrimPrefix(key, "/registry/")
		got := of(r, path)
		if resource == "events.events.k8s.io" {
			resource = "events" // one place, two names
		}
		name := key[strings.LastIndexByte(key, '/')+1:]
		if got.Resource != resource || !got.Known || got.Name != name || (got.Namespace == "NS") != strings.Contains(key, "/NS/") {
			t.Errorf("%s is taken for %+v, want %s", key, got, resource)
		}
	}
	if n < 100 {
		t.Errorf("%d paths were compared", n)
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	r := stored.Kubernetes()
	for path, want := range map[string]stored.Place{
		"secrets/default/one":          {"secrets", true, "default", "one"},
		"minions/node-1":               {"nodes", true, "", "node-1"},
		"clusterroles/system:node":     {"clusterroles.rbac.authorization.k8s.io", true, "", "system:node"},
		"example.com/gadgets/g":        {"gadgets.example.com", true, "", "g"},
		"ranges/serviceips":            {"ranges", true, "", "serviceips"},
		"masterleases/10.0.0.1":        {"masterleases", true, "", "10.0.0.1"},
		"peerserverleases/apiserver-x": {"peerserverleases", true, "", "apiserver-x"},
		"secrets/default/one/two":      {"secrets", true, "", ""},
		"secrets/default/":             {"secrets", true, "", ""},
		"secrets//one":                 {"secrets", true, "", ""},
		"secrets/":                     {"secrets", true, "", ""},
		"example.com/widgets":          {"widgets.example.com", true, "", ""},
		"secrets":                      {"/registry/secrets", false, "", ""},
		"routes/shop/web":              {"/registry/routes", false, "", ""},
		"oauth/accesstokens/sha256~x":  {"/registry/oauth", false, "", ""},
		"wardle.example.com/wardle.example.com/flunders/ns/a": {"/registry/wardle.example.com/wardle.example.com", false, "", ""},
		"example.com/Bad_Name/x":                              {"/registry/example.com/Bad_Name", false, "", ""},
		"health":                                              {"/registry/health", false, "", ""},
		"":                                                    {"/registry/", false, "", ""},
		"/":                                                   {"/registry/", false, "", ""},
		"example.com":                                         {"/registry/example.com", false, "", ""},
		"example.com/":                                        {"/registry/example.com/", false, "", ""},
		"\x1b[2J/x":                                           {"/registry/\x1b[2J", false, "", ""},
	} {
		if got := of(r, path); got != want {
			t.Errorf("Of(%q) = %+v, want %+v", path, got, want)
		}
	}
}

// Layouts of other API servers: of several that fit the longest counts, below any prefix of etcd.
func TestLayouts(t *testing.T) {
	t.Parallel()
	r, err := stored.NewResources(append(stored.OpenShift(), stored.Layout{Resource: "flunders.wardle.example.com", Prefix: "/registry/wardle/wardle.example.com/flunders"},
		stored.Layout{Resource: "others.wardle.example.com", Prefix: "/registry/wardle"})...)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]stored.Place{
		"/openshift.io/routes/shop/web":                     {"routes.route.openshift.io", true, "shop", "web"},
		"/openshift.io/oauth/accesstokens/sha256~x":         {"oauthaccesstokens.oauth.openshift.io", true, "", "sha256~x"},
		"/openshift.io/useridentities/github:1":             {"identities.user.openshift.io", true, "", "github:1"},
		"/openshift.io/oauth/other/x":                       {"/openshift.io/oauth", false, "", ""},
		"/openshift.io/routesx/shop/web":                    {"/openshift.io/routesx", false, "", ""},
		"/openshift.io/routes":                              {"/openshift.io/routes", false, "", ""},
		"/registry/routes/shop/web":                         {"/registry/routes", false, "", ""},
		"/registry/wardle/wardle.example.com/flunders/ns/a": {"flunders.wardle.example.com", true, "ns", "a"},
		"/registry/wardle/ns/a":                             {"others.wardle.example.com", true, "ns", "a"},
		"/kubernetes.io/secrets/ns/a":                       {"secrets", true, "ns", "a"},
		"/kubernetes.io/config.openshift.io/oauths/cluster": {"oauths.config.openshift.io", true, "", "cluster"},
	} {
		prefix := key[:strings.IndexByte(key[1:], '/')+2]
		if got := r.Of([]byte(key), []byte(strings.TrimPrefix(key, prefix))); got != want {
			t.Errorf("Of(%q) = %+v, want %+v", key, got, want)
		}
	}
	if !slices.Contains(r.Names(), "routes.route.openshift.io") || slices.Contains(r.Names(), "ranges") || !slices.Contains(r.Names(), "deployments.apps") {
		t.Errorf("names %q", r.Names())
	}
	for name, bad := range map[string][]stored.Layout{
		"two resources in one place": {{"a.b.c", "/registry/a"}, {"d.b.c", "/registry/a"}},
		"Secrets as something else":  {{"a.b.c", "/registry/secrets"}},
		"part of a resource":         {{"a.b.c", "/registry/secrets/kube-system"}},
	} {
		if _, err := stored.NewResources(bad...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		entry, resource string
		want            bool
	}{
		{"secrets", "secrets", true},
		{"secrets.", "secrets", true},
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
		{"*.*", "/openshift.io/routes", true},
		{"*.", "/registry/routes", false},
		{"*.io/routes", "/openshift.io/routes", false},
		{"/openshift.io/routes", "/openshift.io/routes", false},
	} {
		if got := stored.Matches(c.entry, c.resource); got != c.want {
			t.Errorf("Matches(%q, %q) = %v", c.entry, c.resource, got)
		}
	}
}

func TestCheckEntry(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"secrets", "sercets", "deployments.apps", "widgets.example.com", "*.", "*.*", "*.apps", "*.example.com", "events.events.k8s.io"} {
		if err := stored.CheckEntry(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", " ", " secrets", "secrets ", "Secrets", "v1/secrets", "/openshift.io/routes", "*", "secrets.*", "secrets.", ".", ".apps", "*.*.*", "*.Apps", "a..b", "*secrets",
		"ingresses.extensions", "*.extensions", "secrets\n", "secr\u00e9ts", "-a", strings.Repeat("a", 64), "a." + strings.Repeat("b.", 130) + "c",
	} {
		if err := stored.CheckEntry(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	for _, good := range [][]string{nil, {"secrets"}, {"secrets", "configmaps", "*.apps"}, {"*.", "*.apps", "widgets.example.com"}, {"*.*"}} {
		if wide, covered, overlap := stored.Overlap(good); overlap {
			t.Errorf("%q: %s covers %s", good, wide, covered)
		}
	}
	for _, bad := range [][]string{{"secrets", "secrets"}, {"secrets", "*."}, {"*.", "secrets"}, {"*.*", "*.apps"}, {"secrets", "*.*"}, {"*.example.com", "widgets.example.com"}, {"*.apps", "*.apps"}} {
		if _, _, overlap := stored.Overlap(bad); !overlap {
			t.Errorf("%q is accepted", bad)
		}
	}
}
