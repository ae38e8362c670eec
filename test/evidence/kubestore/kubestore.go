// Package kubestore makes values as kube-apiserver stores them in etcd, with the API server's own code and without an
// API server: Secrets in protobuf, encrypted under DEKs that the caller has wrapped. It serves the tests and the
// benchmark of etcd report, verify and get.
package kubestore

import (
	"bytes"
	"context"
	"crypto/aes"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/storage/value"
	transform "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	v2 "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"
)

// DEK is one DEK (a seed, as API servers of today use) in both forms.
type DEK struct {
	Provider string // name of the KMS provider
	KeyID    string
	Wrapped  []byte // as the plugin gave it
	Plain    []byte // 32 bytes
	IsKey    bool   // an AES-GCM key as API servers before 1.29 used, not a seed
}

// Value encrypts plain as the API server would for the etcd key.
func (d *DEK) Value(key string, plain []byte) ([]byte, error) {
	var transformer value.Transformer
	var err error
	kind := v2.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED
	if d.IsKey {
		kind = v2.EncryptedDEKSourceType_AES_GCM_KEY
		block, blockErr := aes.NewCipher(d.Plain)
		if blockErr != nil {
			return nil, fmt.Errorf("using a DEK: %w", blockErr)
		}
		transformer, err = transform.NewGCMTransformer(block)
	} else {
		transformer, err = transform.NewHKDFExtendedNonceGCMTransformer(d.Plain)
	}
	if err != nil {
		return nil, fmt.Errorf("using a DEK: %w", err)
	}
	data, err := transformer.TransformToStorage(context.Background(), plain, value.DefaultContext(key))
	if err != nil {
		return nil, fmt.Errorf("encrypting %s: %w", key, err)
	}
	object := &v2.EncryptedObject{EncryptedData: data, KeyID: d.KeyID, EncryptedDEKSource: d.Wrapped, EncryptedDEKSourceType: kind}
	if err := kmsv2.ValidateEncryptedObject(object); err != nil {
		return nil, fmt.Errorf("encrypting %s: %w", key, err)
	}
	encoded, err := proto.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encrypting %s: %w", key, err)
	}
	return append([]byte("k8s:enc:kms:v2:"+d.Provider+":"), encoded...), nil
}

// Secret is a Secret as the API server serialises it for etcd.
func Secret(namespace, name string, data []byte) ([]byte, error) {
	scheme := runtime.NewScheme()
	secret := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID("00000000-0000-4000-8000-000000000001"),
			CreationTimestamp: metav1.NewTime(time.Unix(1_700_000_000, 0)),
		},
		Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"password": data},
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(scheme, scheme).Encode(secret, &b); err != nil {
		return nil, fmt.Errorf("encoding a Secret: %w", err)
	}
	return b.Bytes(), nil
}
