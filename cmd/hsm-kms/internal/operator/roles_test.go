package operator

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/manifests"
)

// verbOf is the verb of a request, as a role names it.
func verbOf(r *http.Request) string {
	if r.Method == http.MethodGet && r.URL.Query().Has("limit") {
		return "list"
	}
	return map[string]string{http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[r.Method]
}

// permit is one verb on one resource; namespace empty: in all of them, or in none.
type permit struct{ namespace, group, resource, verb string }

// permits are all that the manifests allow.
func permits(t *testing.T, resources ...string) (all []permit) {
	t.Helper()
	files, err := manifests.Render("operator", manifests.Values{Resources: resources})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(files, func(f manifests.File) bool { return strings.HasSuffix(f.Path, "operate-rbac.yaml") })
	for document := range strings.SplitSeq(string(files[at].Content), "\n---\n") {
		var role rbacv1.Role // a ClusterRole has the same fields
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, verb := range rule.Verbs {
				for _, path := range rule.NonResourceURLs {
					all = append(all, permit{resource: path, verb: verb})
				}
				for _, resource := range rule.Resources {
					all = append(all, permit{role.Namespace, rule.APIGroups[0], resource, verb})
				}
			}
		}
	}
	return all
}

// needed is what a request needs; false: what is served is asked for, which everybody may.
func needed(request string) (permit, bool) {
	verb, path, _ := strings.Cut(request, " ")
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	p := permit{verb: verb, resource: path}
	switch {
	case parts[0] == "api" && len(parts) > 2:
		parts = parts[2:]
	case parts[0] == "apis" && len(parts) > 3:
		p.group, parts = parts[1], parts[3:]
	default:
		return p, parts[0] != "api" && parts[0] != "apis"
	}
	if parts[0] == "namespaces" {
		p.namespace, parts = parts[1], parts[2:]
	}
	if p.resource = parts[0]; len(parts) > 2 {
		p.resource += "/" + parts[2]
	}
	return p, true
}

// The roles allow what operate asks for in a rotation, and nothing that it never asks for.
func TestLeastPrivilege(t *testing.T) {
	simulated(t, func(t *testing.T) {
		s := simulate(t, 3, func(cfg *Config) { cfg.Engine = EngineSVM })
		s.waitState(state.Steady, 10*time.Minute)
		go manager{takes: 20 * time.Second, every: 2}.work(s)
		s.rotate()
		s.finish()
		allowed := permits(t, "secrets", "widgets.example.com")
		used := map[permit]bool{}
		s.mu.Lock()
		defer s.mu.Unlock()
		for request := range s.asked {
			p, ok := needed(request)
			if !ok {
				continue
			}
			anywhere := p
			anywhere.namespace = ""
			if used[p], used[anywhere] = true, true; !slices.Contains(allowed, p) && !slices.Contains(allowed, anywhere) {
				t.Errorf("no role allows %s", request)
			}
		}
		for _, p := range allowed {
			if p.resource == "configmaps" { // as secrets, where --resources names them
				p.resource = "secrets"
			}
			if !used[p] && p.resource != "endpointslices" { // these are asked for where no --server is given
				t.Errorf("a role allows what was never asked for: %+v", p)
			}
		}
	})
}
