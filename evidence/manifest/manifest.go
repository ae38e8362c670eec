// Package manifest turns an object, as the API server serialised it for etcd, into YAML. It depends on k8s.io/api, whose types it
// knows. They are registered when they are needed and not when the program starts. It keeps nothing else, and may be called
// from any number of goroutines.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	cbor "k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"sigs.k8s.io/yaml"
)

// ErrUnknown: the object is of a kind, or in a form, that this program does not know.
var ErrUnknown = errors.New("cannot be shown as YAML")

// The first bytes of the forms in which the API server stores objects.
var (
	protobufMagic = [...]byte{'k', '8', 's', 0}
	cborMagic     = [...]byte{0xd9, 0xd9, 0xf7}
)

// YAML renders an object: protobuf of the kinds of k8s.io/api, and JSON and CBOR of any kind. The error wraps ErrUnknown
// and quotes nothing of the object.
func YAML(stored []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(stored, protobufMagic[:]):
		return fromProtobuf(stored)
	case bytes.HasPrefix(stored, cborMagic[:]):
		var object map[string]any
		if cbor.Unmarshal(stored, &object) != nil {
			return nil, fmt.Errorf("%w: it is not an object in CBOR", ErrUnknown)
		}
		return fromObject(object)
	case len(stored) > 0 && stored[0] == '{':
		if !json.Valid(stored) {
			return nil, fmt.Errorf("%w: it is not JSON", ErrUnknown)
		}
		out, err := yaml.JSONToYAML(stored)
		if err != nil {
			return nil, fmt.Errorf("%w: its JSON has no YAML form", ErrUnknown)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%w: it is neither protobuf nor JSON nor CBOR of Kubernetes", ErrUnknown)
}

func fromProtobuf(stored []byte) ([]byte, error) {
	var envelope runtime.Unknown
	if envelope.Unmarshal(stored[len(protobufMagic):]) != nil {
		return nil, fmt.Errorf("%w: it is not an object in protobuf", ErrUnknown)
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	object, kind, err := protobuf.NewSerializer(scheme, scheme).Decode(stored, nil, nil)
	if err != nil {
		if runtime.IsNotRegisteredError(err) {
			return nil, fmt.Errorf("%w: its kind, %.100q of %.100q, is not known to this version", ErrUnknown, envelope.Kind, envelope.APIVersion)
		}
		return nil, fmt.Errorf("%w: it is not a whole %.100q", ErrUnknown, envelope.Kind)
	}
	object.GetObjectKind().SetGroupVersionKind(*kind)
	return fromObject(object)
}

func fromObject(object any) ([]byte, error) {
	out, err := yaml.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("%w: it has no YAML form", ErrUnknown)
	}
	return out, nil
}
