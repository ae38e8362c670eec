package kubeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// mapper finds the paths of resources by asking for what is served, of the groups that are needed and once each. client-go's
// discovery does that for all groups and links every typed API into the program: 15 MB, for two small answers.
type mapper struct {
	mu       sync.Mutex // guards the fields below
	known    map[string]*served
	passedOn map[string]aggregated // by group; nil: not asked yet
}

// served is where a resource is.
type served struct {
	prefix     string // /api/v1, /apis/GROUP/VERSION
	plural     string
	namespaced bool
}

func newMapper() *mapper { return &mapper{known: map[string]*served{}} }

// path is the object's. The error wraps migrate.ErrUnknown, or is the request's.
func (m *mapper) path(ctx context.Context, client rest.Interface, object migrate.Object) (string, error) {
	for _, part := range []string{object.Resource, object.Namespace, object.Name} { // what stands in etcd may be made to lead elsewhere
		if wrong := content.IsPathSegmentName(part); len(wrong) > 0 {
			return "", fmt.Errorf("%w: %q is not a valid name: %s", migrate.ErrUnknown, part, strings.Join(wrong, ", "))
		}
	}
	at, err := m.find(ctx, client, object.Resource)
	if err != nil {
		return "", err
	}
	if at.namespaced != (object.Namespace != "") {
		return "", fmt.Errorf("%w: %s are namespaced: %v, and this one's place in etcd says otherwise", migrate.ErrUnknown, object.Resource, at.namespaced)
	}
	segments := at.prefix
	if at.namespaced {
		segments += "/namespaces/" + object.Namespace
	}
	return segments + "/" + at.plural + "/" + object.Name, nil
}

// find is called by many at once at the beginning; the first asks and the others wait for it.
func (m *mapper) find(ctx context.Context, client rest.Interface, resource string) (*served, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := m.known[resource]; at != nil {
		return at, nil
	}
	plural, group, _ := strings.Cut(resource, ".")
	versions, err := versionsOf(ctx, client, group)
	if err != nil {
		return nil, err
	}
	for _, prefix := range versions {
		var list metav1.APIResourceList
		if err := ask(ctx, client, prefix, &list); err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if r.Name == plural {
				at := &served{prefix: prefix, plural: plural, namespaced: r.Namespaced}
				m.known[resource] = at
				return at, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: %s is not served by any version of its group", migrate.ErrUnknown, resource)
}

// versionsOf are the paths of a group's versions, the preferred one first.
func versionsOf(ctx context.Context, client rest.Interface, group string) ([]string, error) {
	if group == "" {
		return []string{"/api/v1"}, nil
	}
	var answer metav1.APIGroup
	err := ask(ctx, client, "/apis/"+group, &answer)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%w: the API server does not serve the group %s", migrate.ErrUnknown, group)
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, v := range append([]metav1.GroupVersionForDiscovery{answer.PreferredVersion}, answer.Versions...) {
		version, ours := strings.CutPrefix(v.GroupVersion, group+"/")
		if !ours || len(content.IsDNS1123Label(version)) > 0 || len(paths) == maxVersions { // it becomes part of a path
			return nil, fmt.Errorf("%w: the version %.64q of the group %s, or more than %d", migrate.ErrBadAnswer, v.GroupVersion, group, maxVersions)
		}
		if path := "/apis/" + v.GroupVersion; !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// ask gets a JSON document.
func ask(ctx context.Context, client rest.Interface, path string, into any) error {
	data, err := do(ctx, client.Get().AbsPath(path))
	if err != nil {
		return fmt.Errorf("asking what is served: %w", err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%w: decoding what is served at %s: %w", migrate.ErrBadAnswer, path, err)
	}
	return nil
}
