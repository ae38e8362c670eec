package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// beside are the servers that are measured beside the plugin, on the same token. None has a deadline, recovery, audit or
// check of any kind: they are no plugins that anybody should run.
var beside = []string{whoB, whoW, whoU}

// direct is the empty server with the bare calls in its handlers and nothing else.
type direct struct {
	empty
	calls    *bareCalls
	sessions chan p11.Session
	profile  string
}

func (b *direct) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
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

func (b *direct) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	s := <-b.sessions
	defer func() { b.sessions <- s }()
	if b.profile == profileHMAC {
		_, err := b.calls.library.HMAC(time.Time{}, s, b.calls.key, random(bareKDFInput))
		return &kmsapi.DecryptResponse{Plaintext: make([]byte, dekSize)}, err
	}
	dek, err := b.calls.library.DecryptGCM(time.Time{}, s, b.calls.key, r.Ciphertext[:12], make([]byte, bareAssociated), r.Ciphertext[12:])
	return &kmsapi.DecryptResponse{Plaintext: dek}, err
}

// serveBeside is the process that serves one of beside, until it is killed.
func serveBeside(o *options) error {
	service, err := besideService(o)
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", o.socket)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, service)
	return server.Serve(listener)
}

func besideService(o *options) (kmsapi.KeyManagementServiceServer, error) {
	nothing := empty{keyID: strings.Repeat("k", emptyKeyID)}
	if o.who == whoU {
		return newUsual(o, nothing)
	}
	library, err := loadModule(o)
	if err != nil {
		return nil, err
	}
	calls, err := openBare(o, library)
	if err == nil {
		err = calls.enough(manySessions)
	}
	if err != nil {
		return nil, err
	}
	b := &direct{empty: nothing, calls: calls, profile: o.profile, sessions: make(chan p11.Session, manySessions)}
	for _, s := range calls.sessions {
		b.sessions <- s
	}
	return b, nil
}

// loadModule loads the module in this process, for W in a worker.
func loadModule(o *options) (p11.API, error) {
	if o.who != whoW {
		return p11.Load(o.module, "")
	}
	environment, _ := worker.Environment(os.Environ(), nil)
	return worker.Start(context.Background(), worker.Config{
		Token: "bench", Module: o.module, Environment: environment, ConnectTimeout: connectTimeout,
		Hook: func(string, p11.RV, time.Duration) {}, Log: slog.New(slog.DiscardHandler),
	})
}

// startBeside starts that process on the token.
func (w *rig) startBeside(ctx context.Context, dir, who, profile string, token *softhsm.Token) (*client, error) {
	socket := filepath.Join(dir, who+".sock")
	child, err := proc.Start(proc.Spec{
		Name: who, Path: w.self, Env: token.Env(), Log: filepath.Join(dir, who+".log"),
		Args: append([]string{"-role", "beside", "-who", who, "-profile", profile}, tokenArgs(socket, token)...),
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
