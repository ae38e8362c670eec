package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// The whole program in profile aes-gcm-hsm-iv, as kube-apiserver sees it: over the socket, over restarts, with nonces that
// are repeated, and after a change of the profile to aes-gcm.
func TestServeWithOwnNonces(t *testing.T) {
	t.Parallel()
	for name, library := range map[string]struct {
		how    faultp11.IVs
		length byte
		fields string
	}{
		"written back": {faultp11.WrittenBack, 12, ""},
		"appended":     {faultp11.Appended, 16, ", ivAppended: true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newMakeRig(t)
			faults := r.tokens[0].faults
			faults.MakeIVs(library.how)
			text, err := os.ReadFile(r.configPath())
			r.must(err)
			plain := strings.Replace(string(text), "callTimeout: 400ms", "callTimeout: 2s", 1)
			r.file("config.yaml", strings.Replace(plain, "callTimeout: 2s", "callTimeout: 2s"+library.fields, 1)+"profile: aes-gcm-hsm-iv\n")
			if out, errOut, code := r.hsmkms("keys", "list"); code != 0 || !strings.Contains(out, "is not served: the token does not use it as aes-gcm-hsm-iv: CKM_AES_ECB") {
				t.Errorf("a key that is limited to AES-GCM: exit %d: %s%s", code, out, errOut)
			}
			r.empty(r.tokens[0])
			if _, errOut, code := r.hsmkms("keys", "create"); code != 0 {
				t.Fatalf("keys create: exit %d: %s", code, errOut)
			}

			api, stop := r.startServe()
			wrapped := r.encrypt(api)
			if !bytes.HasPrefix(wrapped.Ciphertext, []byte{1, byte(envelope.AESGCMHSMIV), library.length}) {
				t.Errorf("the envelope is %x", wrapped.Ciphertext)
			}
			r.decrypts(api, wrapped)
			if _, errOut, code := r.hsmkms("keys", "list"); code != 0 { // beside the plugin, with the same memory of nonces
				t.Errorf("keys list: exit %d: %s", code, errOut)
			}
			for at := range wrapped.Ciphertext {
				changed := bytes.Clone(wrapped.Ciphertext)
				changed[at] ^= 1
				answer, err := api.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: changed, KeyId: wrapped.KeyId})
				if err == nil || status.Code(err) == codes.Unavailable || len(answer.GetPlaintext()) > 0 {
					t.Errorf("byte %d changed: %v", at, err)
				}
			}
			stop()

			api, stop = r.startServe() // what was sealed before the start is read
			r.decrypts(api, wrapped)
			r.encrypt(api)
			nonces := filepath.Join(r.state, "nonces")
			r.must(os.Rename(nonces, nonces+".away"))
			r.must(os.Mkdir(nonces, 0o700))
			if answer, err := api.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("a DEK"), Uid: "test"}); status.Code(err) != codes.FailedPrecondition ||
				!strings.Contains(err.Error(), "memory of the HSM's nonces") || answer != nil {
				t.Errorf("without the memory of nonces: %v, %v", answer, err)
			}
			r.decrypts(api, wrapped)
			r.must(os.Remove(nonces))
			r.must(os.Rename(nonces+".away", nonces))
			faults.DrawIVs(faultp11.ConstantIVs, 0)
			_, _ = api.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("a DEK"), Uid: "test"})
			if answer, err := api.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("a DEK"), Uid: "test"}); status.Code(err) != codes.FailedPrecondition ||
				!strings.Contains(err.Error(), "repeated a nonce") || answer != nil {
				t.Errorf("under a repeated nonce: %v, %v", answer, err)
			}
			r.decrypts(api, wrapped)
			stop()

			faults.MakeIVs(faultp11.OfCaller) // as another token with a copy of the key
			r.file("config.yaml", plain)
			api, stop = r.startServe()
			r.decrypts(api, wrapped)
			if next := r.encrypt(api); next.KeyId != wrapped.KeyId || next.Ciphertext[1] != byte(envelope.AESGCM) {
				t.Errorf("in profile aes-gcm: %s, %x", next.KeyId, next.Ciphertext)
			}
			stop()
		})
	}
}

// startServe starts the plugin and waits until it can be used. stop ends it.
func (r *retireRig) startServe() (api kmsapi.KeyManagementServiceClient, stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd, _, log := r.startCommand(ctx, "serve")
	conn, err := kmsplugin.Dial(r.socket)
	r.must(err)
	stop = func() {
		_ = conn.Close()
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		cancel()
	}
	r.t.Cleanup(func() {
		stop()
		if r.t.Failed() {
			r.t.Logf("the plugin's log:\n%s", log)
		}
	})
	api = kmsapi.NewKeyManagementServiceClient(conn)
	for until := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		answer, err := api.Status(ctx, &kmsapi.StatusRequest{})
		if answer.GetHealthz() == "ok" {
			return api, stop
		}
		if time.Now().After(until) {
			r.t.Fatalf("the plugin is not ready: %v, %v", answer, err)
		}
	}
}

func (r *retireRig) encrypt(api kmsapi.KeyManagementServiceClient) *kmsapi.EncryptResponse {
	r.t.Helper()
	answer, err := api.Encrypt(r.t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("a DEK"), Uid: "test"})
	r.must(err)
	return answer
}

func (r *retireRig) decrypts(api kmsapi.KeyManagementServiceClient, wrapped *kmsapi.EncryptResponse) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	answer, err := api.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: wrapped.Ciphertext, KeyId: wrapped.KeyId, Uid: "test"})
	if err != nil || string(answer.GetPlaintext()) != "a DEK" {
		r.t.Errorf("opening: %q, %v", answer.GetPlaintext(), err)
	}
}
