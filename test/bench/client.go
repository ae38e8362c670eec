package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/test/bench/measure"
)

// The operations, as they are named in the table and in the results.
const (
	opEncrypt = "Encrypt"
	opDecrypt = "Decrypt"
	opStatus  = "Status"
)

const (
	callTimeout = 3 * time.Second // kube-apiserver's own
	dekSize     = 32              // of a DEK seed
	// requestUID is as long as the UUIDs of kube-apiserver.
	requestUID = "5f2c1d34-0000-4000-8000-0123456789ab"
)

// client asks one KMS v2 server the way kube-apiserver does (k8s.io/apiserver, envelope/kmsv2/grpc_service.go).
type client struct {
	conn   *grpc.ClientConn
	api    kmsapi.KeyManagementServiceClient
	sealed []*kmsapi.DecryptRequest // distinct DEKs that it can be asked to open
}

// dial connects to the server at socket, which must be listening.
func dial(socket string) (*client, error) {
	conn, err := kmsplugin.Dial(socket)
	if err != nil {
		return nil, err
	}
	return &client{conn: conn, api: kmsapi.NewKeyManagementServiceClient(conn)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

func (c *client) status(ctx context.Context) (*kmsapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.api.Status(ctx, &kmsapi.StatusRequest{}, grpc.WaitForReady(true))
}

func (c *client) encrypt(ctx context.Context) (*kmsapi.EncryptResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.api.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: random(dekSize), Uid: requestUID}, grpc.WaitForReady(true))
}

func (c *client) decrypt(ctx context.Context, request *kmsapi.DecryptRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.api.Decrypt(ctx, request, grpc.WaitForReady(true))
	if err == nil && len(answer.Plaintext) != dekSize {
		err = fmt.Errorf("decrypting: the answer has %d bytes", len(answer.Plaintext))
	}
	return err
}

// seal has n DEKs encrypted, for Decrypt to be asked of.
func (c *client) seal(ctx context.Context, n int) error {
	for range n {
		answer, err := c.encrypt(ctx)
		if err != nil {
			return fmt.Errorf("encrypting a DEK to decrypt later: %w", err)
		}
		c.sealed = append(c.sealed, &kmsapi.DecryptRequest{Ciphertext: answer.Ciphertext, KeyId: answer.KeyId, Uid: requestUID})
	}
	return nil
}

// measure puts a load of one operation on the server.
func (c *client) measure(ctx context.Context, op string, l load) (sample, error) {
	s, err := measure.Drive(ctx, l, func(_, call int) error { return c.one(ctx, op, call) })
	if err != nil {
		return s, fmt.Errorf("measuring %s with %d clients: %w", op, l.Clients, err)
	}
	return s, nil
}

// one makes one call; of a Decrypt, number says which DEK.
func (c *client) one(ctx context.Context, op string, number int) (err error) {
	switch op {
	case opStatus:
		_, err = c.status(ctx)
	case opEncrypt:
		_, err = c.encrypt(ctx)
	case opDecrypt:
		err = c.decrypt(ctx, c.sealed[number%len(c.sealed)])
	}
	return err
}

// untilListening waits until somebody listens on socket. It polls: another process's socket gives no event.
func untilListening(ctx context.Context, socket string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (last: %w)", socket, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
