package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// both is the empty server with the bare calls in its handlers and nothing else: what is measured of it is B. It has no
// deadline, recovery, audit or check of any kind, so it is no plugin that anybody should run. It tells how much more
// than N + R it takes on this machine merely to do both in one process, which no plugin can do without.
type both struct {
	empty
	calls    *bareCalls
	sessions chan p11.Session
	profile  string
}

func (b *both) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	s := <-b.sessions
	defer func() { b.sessions <- s }()
	if b.profile == profileHMAC {
		_, err := b.calls.library.HMAC(time.Time{}, s, b.calls.key, random(bareKDFInput))
		return &kmsapi.EncryptResponse{Ciphertext: make([]byte, emptyCiphertext), KeyId: b.keyID}, err
	}
	nonce := random(12)
	sealed, err := b.calls.library.EncryptGCM(time.Time{}, s, b.calls.key, nonce, make([]byte, bareAssociated), r.Plaintext)
	return &kmsapi.EncryptResponse{Ciphertext: append(nonce, sealed...), KeyId: b.keyID}, err
}

func (b *both) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	s := <-b.sessions
	defer func() { b.sessions <- s }()
	if b.profile == profileHMAC {
		_, err := b.calls.library.HMAC(time.Time{}, s, b.calls.key, random(bareKDFInput))
		return &kmsapi.DecryptResponse{Plaintext: make([]byte, dekSize)}, err
	}
	dek, err := b.calls.library.DecryptGCM(time.Time{}, s, b.calls.key, r.Ciphertext[:12], make([]byte, bareAssociated), r.Ciphertext[12:])
	return &kmsapi.DecryptResponse{Plaintext: dek}, err
}

// serveBoth is the process that serves B, until it is killed.
func serveBoth(o *options) error {
	calls, err := openBare(o)
	if err != nil {
		return err
	}
	if err := calls.enough(manySessions); err != nil {
		return err
	}
	b := &both{empty: empty{keyID: strings.Repeat("k", emptyKeyID)}, calls: calls, profile: o.profile, sessions: make(chan p11.Session, manySessions)}
	for _, s := range calls.sessions {
		b.sessions <- s
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", o.socket)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, b)
	return server.Serve(listener)
}

// startBoth starts that process on the token.
func (w *rig) startBoth(ctx context.Context, dir, profile string, token *softhsm.Token) (*client, error) {
	socket := filepath.Join(dir, "both.sock")
	child, err := proc.Start(proc.Spec{
		Name: "both", Path: w.self, Env: token.Env(), Log: filepath.Join(dir, "both.log"),
		Args: append([]string{"-role", "both", "-profile", profile}, tokenArgs(socket, token)...),
	})
	if err != nil {
		return nil, err
	}
	w.atEnd(func() error { child.Kill(); return nil })
	w.children = append(w.children, child.PID)
	return w.connect(ctx, socket, child)
}

// tokenArgs tell a child process which token it works on.
func tokenArgs(socket string, token *softhsm.Token) []string {
	return []string{"-socket", socket, "-module", token.Module, "-label", token.Label, "-pin-file", token.PINFile}
}
