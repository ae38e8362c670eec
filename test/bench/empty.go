package main

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"
)

// The lengths of the plugin's own answers in profile aes-gcm with the ring kube-secrets, so that both servers' answers
// cost the protocol the same.
const (
	emptyCiphertext = 2 + 12 + dekSize + 16
	emptyKeyID      = 72
)

// empty is a KMS v2 server that does nothing: what is measured of it is N.
type empty struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	keyID string
}

func (e *empty) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: e.keyID}, nil
}

func (e *empty) Encrypt(context.Context, *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	return &kmsapi.EncryptResponse{Ciphertext: make([]byte, emptyCiphertext), KeyId: e.keyID}, nil
}

func (e *empty) Decrypt(context.Context, *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	return &kmsapi.DecryptResponse{Plaintext: make([]byte, dekSize)}, nil
}

// serveEmpty is the process that serves N, until it is killed.
func serveEmpty(socket string) error {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", socket)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, &empty{keyID: strings.Repeat("k", emptyKeyID)})
	return server.Serve(listener)
}
