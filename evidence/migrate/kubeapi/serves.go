package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Serves implements migrate.Server.
func (s *Server) Serves(ctx context.Context, resource string) error {
	_, err := s.mapper.find(ctx, s.client, resource)
	if err = classify(err); !errors.Is(err, migrate.ErrUnknown) {
		return err
	}
	advice := "see which there are with: kubectl api-resources"
	if meant := s.meant(ctx, resource); meant != "" {
		advice = "did you mean " + meant + "?"
	}
	return hint.Wrap(err, advice)
}

// maxGuesses bounds how many similar names are asked for.
const maxGuesses = 100

// meant returns a similar resource that is served: of this group or Kubernetes' own, of a group with a similar name, or of any
// group, the core one first. Empty: none was found.
func (s *Server) meant(ctx context.Context, resource string) string {
	plural, group, _ := strings.Cut(resource, ".")
	known := stored.Kubernetes().Names()
	if versions, err := versionsOf(ctx, s.client, group); err == nil {
		for _, prefix := range versions {
			var list metav1.APIResourceList
			if ask(ctx, s.client, prefix, &list) == nil {
				for _, r := range list.APIResources {
					known = append(known, strings.TrimSuffix(r.Name+"."+group, "."))
				}
			}
		}
	}
	guesses := []string{evidence.Meant(resource, known)}
	var served metav1.APIGroupList
	if ask(ctx, s.client, "/apis", &served) == nil {
		var groups []string
		for _, g := range served.Groups {
			groups = append(groups, g.Name)
		}
		for _, g := range append([]string{hint.Nearest(group, groups), ""}, groups...) {
			guesses = append(guesses, strings.TrimSuffix(plural+"."+g, "."))
		}
	}
	for _, guess := range guesses[:min(len(guesses), maxGuesses)] {
		if guess == "" || guess == resource {
			continue
		}
		if _, err := s.mapper.find(ctx, s.client, guess); err == nil {
			return guess
		}
	}
	return ""
}

// apiService is what is read of an APIService (apiregistration.k8s.io/v1).
type apiService struct {
	Spec struct {
		Group   string `json:"group"`
		Service *struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service"`
		CABundle []byte `json:"caBundle"`
	} `json:"spec"`
}

// aggregated is who answers for a group in kube-apiserver's place.
type aggregated struct {
	namespace, name string // of the Service
	ca              []byte // that signed the certificates behind it; empty: the APIService names none
}

func (a aggregated) String() string { return a.namespace + "/" + a.name }

// Behind implements migrate.Server. It needs the permission to list APIServices.
func (s *Server) Behind(ctx context.Context, group string) (string, error) {
	services, err := s.mapper.services(ctx, s.client)
	if err != nil {
		return "", err
	}
	if service, ok := services[group]; ok {
		return service.String(), nil
	}
	return "", nil
}

// services lists the groups that are passed on, once.
func (m *mapper) services(ctx context.Context, client rest.Interface) (map[string]aggregated, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.passedOn != nil {
		return m.passedOn, nil
	}
	found := map[string]aggregated{}
	request := func() *rest.Request { return client.Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices") }
	err := list(ctx, request, func(item apiService) error {
		if at := item.Spec.Service; at != nil {
			found[item.Spec.Group] = aggregated{at.Namespace, at.Name, item.Spec.CABundle}
		}
		return nil
	})
	if err != nil {
		advice := ""
		if apierrors.IsForbidden(err) {
			advice = "let the kubeconfig's user list apiservices of apiregistration.k8s.io; docs/evidence.md has the role"
		}
		return nil, hint.Wrap(classify(fmt.Errorf("listing the APIServices: %w", err)), advice)
	}
	m.passedOn = found
	return found, nil
}

// ConnectGroups makes clients for the API servers that are named for groups, as GROUP=URL, each addressed directly. via is an
// API server of the cluster: it knows which Service each group is behind, and which CA signed their certificates. Errors have
// hints.
func ConnectGroups(ctx context.Context, cfg Config, via *Server, named []string) (map[string][]migrate.Server, error) {
	groups := map[string][]migrate.Server{}
	mappers := map[string]*mapper{}
	for _, text := range named {
		group, address, found := strings.Cut(text, "=")
		if !found || group == "" || address == "" {
			return nil, hint.Wrap(fmt.Errorf("--group-server: %q does not have the form GROUP=URL", text), "such as --group-server wardle.example.com=https://10.0.0.9:443")
		}
		services, err := via.mapper.services(ctx, via.client)
		if err != nil {
			return nil, err
		}
		at, ok := services[group]
		if !ok {
			known := strings.Join(slices.Sorted(maps.Keys(services)), ", ")
			return nil, hint.Wrap(fmt.Errorf("--group-server: no APIService passes the group %s on to a Service", group), "those that are: "+evidence.Printable(known))
		}
		if mappers[group] == nil {
			mappers[group] = newMapper()
		}
		server, err := newGroupServer(ctx, cfg, at, address, mappers[group])
		if err != nil {
			return nil, fmt.Errorf("--group-server: %w", err)
		}
		for _, other := range groups[group] {
			if other.Name() == server.name {
				return nil, fmt.Errorf("--group-server: %s is given twice", server.name)
			}
		}
		groups[group] = append(groups[group], server)
	}
	for group, servers := range groups {
		if n, err := via.replicas(ctx, via.mapper.passedOn[group]); err == nil && n > len(servers) {
			return nil, hint.Wrap(fmt.Errorf("--group-server: the Service %s has %d API servers, and %d of %s are named: what the others write would not be proven",
				via.mapper.passedOn[group], n, len(servers), group), "give each of them: kubectl get endpointslices -n "+via.mapper.passedOn[group].namespace)
		}
	}
	return groups, nil
}

// replicas counts the endpoints of a Service. The error is why nobody knows: no permission, as a rule.
func (s *Server) replicas(ctx context.Context, at aggregated) (n int, err error) {
	counts := map[discoveryv1.AddressType]int{}
	request := func() *rest.Request {
		return s.client.Get().AbsPath("/apis/discovery.k8s.io/v1/namespaces/"+at.namespace+"/endpointslices").Param("labelSelector", discoveryv1.LabelServiceName+"="+at.name)
	}
	err = list(ctx, request, func(slice discoveryv1.EndpointSlice) error {
		counts[slice.AddressType] += len(slice.Endpoints)
		return nil
	})
	for _, count := range counts { // an API server may have one address of each type
		n = max(n, count)
	}
	return n, err
}

// newGroupServer makes the client of one, and sees that it is not kube-apiserver, which would pass requests on to any of them.
func newGroupServer(ctx context.Context, cfg Config, at aggregated, address string, mapper *mapper) (*Server, error) {
	base, err := load(cfg)
	if err != nil {
		return nil, err
	}
	if len(at.ca) > 0 {
		base.CAData, base.CAFile = at.ca, ""
	}
	server, err := newServer(base, address, at.name+"."+at.namespace+".svc", mapper)
	if err != nil {
		return nil, hint.Wrap(err, "give --group-server as GROUP=https://HOST:PORT")
	}
	var group metav1.APIGroup
	err = ask(ctx, server.client, "/apis/apiregistration.k8s.io", &group)
	switch {
	case err == nil:
		return nil, hint.Wrap(fmt.Errorf("%s is kube-apiserver: it passes requests on to one of the API servers behind %s, and no answer says to which", server.name, at),
			"give the address of each of those itself, and not of the Service")
	case apierrors.IsNotFound(err):
		return server, nil
	}
	return nil, hint.Wrap(fmt.Errorf("asking %s: %w", server.name, classify(err)), "check that it answers from here, and that its certificate is for "+at.name+"."+at.namespace+".svc")
}
