package kubeapi

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ClusterUID is the UID of the namespace kube-system, which names a cluster for its lifetime. Nothing else is asked for, at
// the address that the kubeconfig has. Errors have hints.
func ClusterUID(ctx context.Context, cfg Config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	base, err := load(cfg)
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("reading the kubeconfig: %w", err), "give --kubeconfig FILE (kubeadm: "+AdminKubeconfig+")") // there is no --context
	}
	client, err := clientOf(base)
	if err != nil {
		return "", fmt.Errorf("using the kubeconfig: %w", err)
	}
	var namespace metav1.PartialObjectMetadata
	if err := (&Client{client, base}).Get(ctx, "/api/v1/namespaces/kube-system", &namespace); err != nil {
		return "", hint.Wrap(fmt.Errorf("asking %s for the namespace kube-system: %w", base.Host, err),
			"let the kubeconfig's user get that namespace, or give its UID: --cluster \"$(kubectl get namespace kube-system -o jsonpath='{.metadata.uid}')\"")
	}
	return string(namespace.UID), nil
}
