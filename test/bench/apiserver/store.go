package main

import (
	"context"
	"crypto/aes"
	"crypto/rand"
	"encoding/base64"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apiserver/pkg/storage/value"
	transform "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
	"github.com/hsm-kms/hsm-kms/test/kube"
)

// object is a JSON object; configuration files are YAML, of which JSON is a part.
type object = map[string]any

// store is an etcd with the Secrets in it, all encrypted in one way.
type store struct {
	name    string
	members *kube.Members
	etcd    *clientv3.Client
	// providers are those of the EncryptionConfiguration; nil: the plugin, as package kube writes it.
	providers []object
	// seal makes of the i-th Secret what the API server would store under key.
	seal func(ctx context.Context, i int, key string, plain []byte) ([]byte, error)
	deks []*kubestore.DEK // nil: not encrypted by the plugin
}

// createdIn is the namespace of the Secrets that are created in a turn and deleted after it.
const createdIn = "created"

// nameOf gives the namespace and name of the i-th Secret; a hundred share a namespace.
func nameOf(i int) (namespace, name string) {
	return fmt.Sprintf("stored-%03d", i/100), fmt.Sprintf("secret-%06d", i)
}

func plainStore() *store {
	return &store{
		name: "none", providers: []object{{"identity": object{}}},
		seal: func(_ context.Context, _ int, _ string, plain []byte) ([]byte, error) { return plain, nil },
	}
}

// cbcStore encrypts with a key of its own, which stands in the configuration: what it costs to encrypt at all.
func cbcStore() (*store, error) {
	key := randomBytes(32)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making the aescbc key: %w", err)
	}
	cbc := transform.NewCBCTransformer(block)
	keys := []object{{"name": "key1", "secret": base64.StdEncoding.EncodeToString(key)}}
	return &store{
		name:      "aescbc",
		providers: []object{{"aescbc": object{"keys": keys}}, {"identity": object{}}},
		seal: func(ctx context.Context, _ int, key string, plain []byte) ([]byte, error) {
			sealed, err := cbc.TransformToStorage(ctx, plain, value.DefaultContext(key))
			return append([]byte("k8s:enc:aescbc:v1:key1:"), sealed...), err
		},
	}, nil
}

// kmsStore encrypts under the DEKs in turn, so that the first Secrets of a list have as many as there are.
func kmsStore(deks []*kubestore.DEK) *store {
	return &store{name: fmt.Sprintf("hsm-kms, %d DEKs", len(deks)), deks: deks, seal: func(_ context.Context, i int, key string, plain []byte) ([]byte, error) {
		return deks[i%len(deks)].Value(key, plain)
	}}
}

// makeDEKs has the plugin wrap n DEKs, as n API servers would at their start.
func makeDEKs(ctx context.Context, socket string, n int) ([]*kubestore.DEK, error) {
	api, end, err := connect(socket)
	if err != nil {
		return nil, err
	}
	defer end()
	var deks []*kubestore.DEK
	for range n {
		dek := &kubestore.DEK{Provider: kube.ProviderName, Plain: randomBytes(32)}
		answer, err := api.Encrypt(ctx, &kmsapi.EncryptRequest{Uid: "bench", Plaintext: dek.Plain})
		if err != nil {
			return nil, fmt.Errorf("having a DEK wrapped: %w", err)
		}
		dek.KeyID, dek.Wrapped = answer.GetKeyId(), answer.GetCiphertext()
		deks = append(deks, dek)
	}
	return deks, nil
}

// open has another plugin open the store's DEKs: what a plugin with an outage hold has opened, it holds.
func (s *store) open(ctx context.Context, socket string) error {
	api, end, err := connect(socket)
	if err != nil {
		return err
	}
	defer end()
	for _, dek := range s.deks {
		if _, err := api.Decrypt(ctx, &kmsapi.DecryptRequest{Uid: "bench", KeyId: dek.KeyID, Ciphertext: dek.Wrapped}); err != nil {
			return fmt.Errorf("having a DEK opened: %w", err)
		}
	}
	return nil
}

func connect(socket string) (api kmsapi.KeyManagementServiceClient, end func(), err error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to the plugin: %w", err)
	}
	return kmsapi.NewKeyManagementServiceClient(conn), func() { _ = conn.Close() }, nil
}

// fill starts the store's etcd and writes n Secrets to it.
func (s *store) fill(ctx context.Context, n, size int) error {
	if err := s.members.Launch(0); err != nil {
		return err
	}
	if err := s.members.WaitReady(ctx); err != nil {
		return err
	}
	const batch = 100 // etcd takes at most 128 in one transaction, unless told otherwise
	for first := 0; first < n; first += batch {
		var ops []clientv3.Op
		for i := first; i < min(first+batch, n); i++ {
			namespace, name := nameOf(i)
			key := "/registry/secrets/" + namespace + "/" + name
			plain, err := kubestore.Secret(namespace, name, randomBytes(size))
			if err != nil {
				return err
			}
			sealed, err := s.seal(ctx, i, key, plain)
			if err != nil {
				return fmt.Errorf("encrypting %s (%s): %w", key, s.name, err)
			}
			ops = append(ops, clientv3.OpPut(key, string(sealed)))
		}
		if _, err := s.etcd.Txn(ctx).Then(ops...).Commit(); err != nil {
			return fmt.Errorf("writing Secrets to etcd (%s): %w", s.name, err)
		}
	}
	return nil
}

// reset takes out what a turn created, and its history, so that every turn finds the same.
func (s *store) reset(ctx context.Context) error {
	answer, err := s.etcd.Delete(ctx, "/registry/secrets/"+createdIn+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("deleting what was created (%s): %w", s.name, err)
	}
	if _, err := s.etcd.Compact(ctx, answer.Header.GetRevision(), clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compacting etcd (%s): %w", s.name, err)
	}
	return nil
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// configuration is the EncryptionConfiguration of the store's API servers.
func (s *store) configuration() object {
	return object{
		"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
		"resources": []object{{"resources": []string{"secrets"}, "providers": s.providers}},
	}
}
