package kube

import (
	"context"
	"net/http"
)

// Widgets is a custom resource, as an EncryptionConfiguration names it.
const Widgets = "widgets.example.com"

// DefineWidgets makes the custom resource. It takes an API server a moment to serve it: until then CreateWidget is a
// StatusError 404.
func (c *Cluster) DefineWidgets(ctx context.Context) error {
	crd := object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": Meta{Name: Widgets},
		"spec": object{
			"group": "example.com", "scope": "Namespaced", "names": object{"plural": "widgets", "kind": "Widget"},
			"versions": []object{{"name": "v1", "served": true, "storage": true, "schema": object{
				"openAPIV3Schema": object{"type": "object", "x-kubernetes-preserve-unknown-fields": true},
			}}},
		},
	}
	return c.Do(ctx, http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd, nil)
}

// CreateWidget makes one whose spec is the text.
func (c *Cluster) CreateWidget(ctx context.Context, namespace, name, spec string) error {
	in := object{"apiVersion": "example.com/v1", "kind": "Widget", "metadata": Meta{Name: name}, "spec": spec}
	return c.Do(ctx, http.MethodPost, "/apis/example.com/v1/namespaces/"+namespace+"/widgets", in, nil)
}

// GetWidget reads the spec of one.
func (c *Cluster) GetWidget(ctx context.Context, namespace, name string) (spec string, err error) {
	var out struct {
		Spec string `json:"spec"`
	}
	err = c.Do(ctx, http.MethodGet, "/apis/example.com/v1/namespaces/"+namespace+"/widgets/"+name, nil, &out)
	return out.Spec, err
}
