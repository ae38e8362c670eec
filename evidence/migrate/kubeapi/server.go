package kubeapi

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// Server is one API server. It implements migrate.Server.
type Server struct {
	name   string
	client rest.Interface
	mapper *mapper
}

var _ migrate.Server = (*Server)(nil)

const (
	// metadataOnly leaves the API server no other form of an answer.
	metadataOnly = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	metadataList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	// Label marks the canaries, for people who come across one.
	Label = "hsm-kms/canary"
	// namePrefix begins a canary's name.
	namePrefix = "hsm-kms-canary-"
	// manager names us in an object's managed fields, should an API server see a change where there is none.
	manager = "hsm-kms-migrate"
)

// Name implements migrate.Server.
func (s *Server) Name() string { return s.name }

// Rewrite implements migrate.Server.
func (s *Server) Rewrite(ctx context.Context, object migrate.Object) (int64, error) {
	path, err := s.mapper.path(ctx, s.client, object)
	if err != nil {
		return 0, classify(err)
	}
	answer, err := do(ctx, s.client.Patch(types.MergePatchType).AbsPath(path).Param("fieldManager", manager).
		SetHeader("Accept", metadataOnly).Body([]byte("{}")))
	if err != nil {
		return 0, classify(err)
	}
	defer clear(answer) // an annotation may hold what nobody else should see
	return revision(answer)
}

// Plant implements migrate.Server.
func (s *Server) Plant(ctx context.Context, resource, namespace string) (migrate.Object, int64, error) {
	kind := map[string]string{"secrets": "Secret", "configmaps": "ConfigMap"}[resource]
	body, err := json.Marshal(metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: kind},
		ObjectMeta: metav1.ObjectMeta{GenerateName: namePrefix, Labels: map[string]string{Label: "true"}},
	})
	if err != nil {
		return migrate.Object{}, 0, fmt.Errorf("encoding a canary: %w", err)
	}
	answer, err := do(ctx, s.client.Post().AbsPath("/api/v1/namespaces/"+namespace+"/"+resource).Param("fieldManager", manager).
		SetHeader("Accept", metadataOnly).Body(body))
	if err != nil {
		return migrate.Object{}, 0, classify(err)
	}
	var made metav1.PartialObjectMetadata
	if err := json.Unmarshal(answer, &made); err != nil || !isCanary(made.Name) {
		return migrate.Object{}, 0, fmt.Errorf("%w: what was made as a canary does not have the name of one", migrate.ErrBadAnswer)
	}
	at, err := revision(answer)
	return migrate.Object{Resource: resource, Namespace: namespace, Name: made.Name}, at, err
}

// Planted implements migrate.Server.
func (s *Server) Planted(ctx context.Context, resource, namespace string) ([]migrate.Object, error) {
	request := func() *rest.Request {
		return s.client.Get().AbsPath("/api/v1/namespaces/"+namespace+"/"+resource).Param("labelSelector", Label+"=true").SetHeader("Accept", metadataList)
	}
	var planted []migrate.Object
	err := list(ctx, request, func(item metav1.PartialObjectMetadata) error {
		if isCanary(item.Name) { // else somebody gave it our label: it is not ours to delete
			planted = append(planted, migrate.Object{Resource: resource, Namespace: namespace, Name: strings.Clone(item.Name)})
		}
		return nil
	})
	return planted, classify(err)
}

// isCanary reports whether a name is one that an API server makes of ours. It becomes part of a path.
func isCanary(name string) bool {
	return strings.HasPrefix(name, namePrefix) && len(content.IsDNS1123Subdomain(name)) == 0
}

// Remove implements migrate.Server.
func (s *Server) Remove(ctx context.Context, planted migrate.Object) error {
	_, err := do(ctx, s.client.Delete().AbsPath("/api/v1/namespaces/"+planted.Namespace+"/"+planted.Resource+"/"+planted.Name).
		SetHeader("Accept", metadataOnly))
	if err = classify(err); errors.Is(err, migrate.ErrGone) {
		return nil
	}
	return err
}

// revision reads the resource version of an answer: an opaque text to clients, and in truth etcd's mod_revision, with which
// it is compared here (KEP-5504 has made comparing it part of the API).
func revision(answer []byte) (int64, error) {
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(answer, &object); err != nil {
		return 0, fmt.Errorf("decoding the answer: %w", err)
	}
	n, err := strconv.ParseInt(object.ResourceVersion, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the answer has the resource version %.64q, which is no revision of etcd", object.ResourceVersion)
	}
	return n, nil
}

// classify says what an error means, in package migrate's words, and keeps what was said.
func classify(err error) error {
	if err == nil {
		return nil
	}
	status, ok := errors.AsType[*apierrors.StatusError](err)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, migrate.ErrUnknown), errors.Is(err, migrate.ErrBadAnswer), untrusted:
		return err
	case !ok:
		return fmt.Errorf("%w: %w", migrate.ErrUnreachable, err)
	case apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse):
		return fmt.Errorf("%w: %w", migrate.ErrUnknown, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", migrate.ErrGone, err)
	}
	switch code := status.Status().Code; {
	case code == 409, code == 429, code >= 500:
		return fmt.Errorf("%w: %w", migrate.ErrPassing, err)
	}
	return err
}
