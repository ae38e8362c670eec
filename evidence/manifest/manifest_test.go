package manifest_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/evidence/manifest"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

func secret(t testing.TB) []byte {
	t.Helper()
	b, err := kubestore.Secret("ns", "one", []byte("canary\x00\xff"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSecret(t *testing.T) {
	t.Parallel()
	text, err := manifest.YAML(secret(t))
	if err != nil {
		t.Fatal(err)
	}
	var got corev1.Secret
	if err := yaml.UnmarshalStrict(text, &got); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	if got.Kind != "Secret" || got.APIVersion != "v1" || got.Namespace != "ns" || string(got.Data["password"]) != "canary\x00\xff" {
		t.Errorf("YAML:\n%s", text)
	}
}

func TestCustomResource(t *testing.T) {
	t.Parallel()
	for _, stored := range []string{
		`{"apiVersion":"example.com/v1","kind":"Widget","spec":{"size":12345678901234567,"on":true}}`,
		"\xd9\xd9\xf7\xa3\x4aapiVersion\x4eexample.com/v1\x44kind\x46Widget\x44spec\xa2\x44size\x1b\x00\x2b\xdc\x54\x5d\x6b\x4b\x87\x42on\xf5",
	} {
		text, err := manifest.YAML([]byte(stored))
		if err != nil || !strings.Contains(string(text), "size: 12345678901234567") || !strings.Contains(string(text), "kind: Widget") {
			t.Errorf("YAML = %v:\n%s", err, text)
		}
	}
}

func TestUnknown(t *testing.T) {
	t.Parallel()
	whole := secret(t)
	for name, stored := range map[string][]byte{
		"empty": nil, "text": []byte("canary"), "no JSON": []byte("{canary"), "no protobuf": []byte("k8s\x00canary"),
		"no CBOR": []byte("\xd9\xd9\xf7canary"), "cut": whole[:len(whole)-20],
		"other kind": bytes.Replace(whole, []byte("Secret"), []byte("Secreu"), 1),
	} {
		if _, err := manifest.YAML(stored); !errors.Is(err, manifest.ErrUnknown) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzYAML(f *testing.F) {
	f.Add(secret(f))
	f.Add([]byte(`{"kind":"x"}`))
	f.Add([]byte("\xd9\xd9\xf7\xa0"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		if _, err := manifest.YAML(stored); err != nil && !errors.Is(err, manifest.ErrUnknown) {
			t.Error(err)
		}
	})
}
