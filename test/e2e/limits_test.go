//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"
)

// The API server's limits: k8s.io/apiserver pkg/storage/value/encrypt/envelope/kmsv2, envelope.go (keyIDMaxSize,
// encryptedDEKSourceMaxSize, annotationsMaxSize, validateAnnotations: IsFullyQualifiedDomainName).
const (
	keyIDMax       = 1 << 10
	ciphertextMax  = 1 << 10
	annotationsMax = 32 << 10
	dekSeed        = 32 // bytes that the API server sends to be encrypted
)

var domainName = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// dial connects as the API server does: over the socket, without TLS, with the authority "localhost".
func (w *rig) dial(t *testing.T) kmsapi.KeyManagementServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+w.plugin.Socket(), grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return kmsapi.NewKeyManagementServiceClient(conn)
}

// limits checks what Encrypt gave against what the API server takes.
func limits(r *kmsapi.EncryptResponse) error {
	if n := len(r.GetCiphertext()); n == 0 || n > ciphertextMax {
		return fmt.Errorf("ciphertext of %d bytes, want 1 to %d", n, ciphertextMax)
	}
	if n := len(r.GetKeyId()); n == 0 || n > keyIDMax {
		return fmt.Errorf("key_id of %d bytes, want 1 to %d", n, keyIDMax)
	}
	size := 0
	for name, value := range r.GetAnnotations() {
		size += len(name) + len(value)
		if !domainName.MatchString(name) {
			return fmt.Errorf("annotation %q is not a fully qualified domain name", name)
		}
	}
	if size > annotationsMax {
		return fmt.Errorf("annotations of %d bytes, want at most %d", size, annotationsMax)
	}
	return nil
}

func TestLimitsOfTheAPIServer(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	w.startPlugin(t)
	client := w.dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 3 { // version, healthz and key_id must not change between answers
		st, err := client.Status(ctx, &kmsapi.StatusRequest{})
		if err != nil || st.GetVersion() != "v2" || st.GetHealthz() != "ok" || st.GetKeyId() != w.keyID {
			t.Fatalf("status = %v, %v; want v2, ok, %s", st, err, w.keyID)
		}
	}
	seen := make(map[string]bool)
	for i := range 20 {
		seed := bytes.Repeat([]byte{byte(i)}, dekSeed)
		enc, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: seed, Uid: fmt.Sprintf("uid-%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		if err := limits(enc); err != nil {
			t.Error(err)
		}
		if enc.GetKeyId() != w.keyID {
			t.Errorf("key_id of Encrypt is %q, of Status %q: the API server refuses that", enc.GetKeyId(), w.keyID)
		}
		if seen[string(enc.GetCiphertext())] || bytes.Contains(enc.GetCiphertext(), seed) {
			t.Error("a ciphertext came twice, or holds the plaintext")
		}
		seen[string(enc.GetCiphertext())] = true
		dec, err := client.Decrypt(ctx, decryptRequest(enc))
		if err != nil || !bytes.Equal(dec.GetPlaintext(), seed) {
			t.Errorf("decrypt gives %x, %v; want %x", dec.GetPlaintext(), err, seed)
		}
	}
}

func decryptRequest(enc *kmsapi.EncryptResponse) *kmsapi.DecryptRequest {
	return &kmsapi.DecryptRequest{Ciphertext: enc.GetCiphertext(), KeyId: enc.GetKeyId(), Annotations: enc.GetAnnotations(), Uid: "uid"}
}

// Requests that etcd's thief could make are refused with the documented codes, and do not harm the plugin.
func TestDecryptRefuses(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	w.startPlugin(t)
	client := w.dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	enc, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: make([]byte, dekSeed), Uid: "uid"})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*kmsapi.DecryptRequest)
		want   codes.Code
	}{
		"flipped bit":    {func(r *kmsapi.DecryptRequest) { r.Ciphertext[len(r.Ciphertext)-1] ^= 1 }, codes.InvalidArgument},
		"cut short":      {func(r *kmsapi.DecryptRequest) { r.Ciphertext = r.Ciphertext[:len(r.Ciphertext)-1] }, codes.InvalidArgument},
		"empty":          {func(r *kmsapi.DecryptRequest) { r.Ciphertext = nil }, codes.InvalidArgument},
		"too long":       {func(r *kmsapi.DecryptRequest) { r.Ciphertext = make([]byte, ciphertextMax+1) }, codes.InvalidArgument},
		"unknown key_id": {func(r *kmsapi.DecryptRequest) { r.KeyId = otherKeyID(w.keyID) }, codes.NotFound},
	}
	for name, test := range tests {
		request := decryptRequest(enc)
		request.Ciphertext = bytes.Clone(request.Ciphertext)
		test.change(request)
		if _, err := client.Decrypt(ctx, request); status.Code(err) != test.want {
			t.Errorf("%s: %v, want code %s", name, err, test.want)
		}
	}
	if _, err := client.Decrypt(ctx, decryptRequest(enc)); err != nil {
		t.Errorf("the untouched one after all that: %v", err)
	}
}

// otherKeyID changes the last character of a key_id, which keeps its form: another fingerprint.
func otherKeyID(id string) string {
	last := byte('0')
	if id[len(id)-1] == last {
		last = '1'
	}
	return id[:len(id)-1] + string(last)
}

// An API server that starts reads every DEK at once.
func TestManyDecryptsAtOnce(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	w.startPlugin(t)
	client := w.dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			seed := bytes.Repeat([]byte{byte(i)}, dekSeed)
			enc, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: seed, Uid: "uid"})
			if err != nil {
				t.Error(err)
				return
			}
			if dec, err := client.Decrypt(ctx, decryptRequest(enc)); err != nil || !bytes.Equal(dec.GetPlaintext(), seed) {
				t.Errorf("decrypt gives %x, %v; want %x", dec.GetPlaintext(), err, seed)
			}
		})
	}
	wg.Wait()
}
