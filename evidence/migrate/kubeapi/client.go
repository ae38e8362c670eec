package kubeapi

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Client makes single requests, at the address that the kubeconfig has. Answers have the limits of this package. It is safe
// for concurrent use. Errors are in package migrate's words: ErrGone, ErrPassing (which a conflict is too), ErrUnreachable.
type Client struct {
	client rest.Interface
	config *rest.Config
}

// Open makes a client; nothing is asked yet. The error has a hint.
func Open(cfg Config) (*Client, error) {
	base, err := load(cfg)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("reading the kubeconfig: %w", err), "give --kubeconfig FILE (kubeadm: "+AdminKubeconfig+") and, if need be, --context")
	}
	client, err := clientOf(base)
	if err != nil {
		return nil, fmt.Errorf("using the kubeconfig: %w", err)
	}
	return &Client{client, base}, nil
}

// EndsSoon is how long before the end of a client certificate a person is told.
const EndsSoon = 30 * 24 * time.Hour

// Expires is when the client certificate that is in use ends; zero: there is none. One that stands in the kubeconfig itself
// is in use from Open on, whatever the file has later; one in a file of its own is read again.
func (c *Client) Expires() (time.Time, error) {
	base := rest.CopyConfig(c.config)
	if err := rest.LoadTLSFiles(base); err != nil {
		return time.Time{}, fmt.Errorf("reading the client certificate: %w", err)
	}
	block, _ := pem.Decode(base.CertData)
	if block == nil {
		return time.Time{}, nil
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the client certificate: %w", err)
	}
	return certificate.NotAfter, nil
}

// Get reads an object.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	return c.ask(ctx, c.client.Get().AbsPath(path), into)
}

// Create posts an object; into may be nil.
func (c *Client) Create(ctx context.Context, path string, object, into any) error {
	return c.send(ctx, c.client.Post().AbsPath(path), object, into)
}

// Update puts an object: with a resourceVersion, only if it is still that one.
func (c *Client) Update(ctx context.Context, path string, object, into any) error {
	return c.send(ctx, c.client.Put().AbsPath(path), object, into)
}

// Merge changes fields of an object (a JSON merge patch).
func (c *Client) Merge(ctx context.Context, path string, change, into any) error {
	return c.send(ctx, c.client.Patch(types.MergePatchType).AbsPath(path), change, into)
}

// Delete deletes an object. One that is gone is no error.
func (c *Client) Delete(ctx context.Context, path string) error {
	if err := c.ask(ctx, c.client.Delete().AbsPath(path), nil); !errors.Is(err, migrate.ErrGone) {
		return err
	}
	return nil
}

// List reads a list page by page; each gets one item's JSON.
func (c *Client) List(ctx context.Context, path, selector string, each func(item []byte) error) error {
	request := func() *rest.Request {
		r := c.client.Get().AbsPath(path)
		if selector != "" {
			r = r.Param("labelSelector", selector)
		}
		return r
	}
	return classify(list(ctx, request, func(item json.RawMessage) error { return each(item) }))
}

func (c *Client) send(ctx context.Context, request *rest.Request, object, into any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encoding a request: %w", err)
	}
	return c.ask(ctx, request.Body(body), into)
}

func (c *Client) ask(ctx context.Context, request *rest.Request, into any) error {
	data, err := do(ctx, request)
	if err != nil {
		return classify(err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%w: decoding an answer: %w", migrate.ErrBadAnswer, err)
	}
	return nil
}

// Ready returns nil if the API server's KMS providers are well by its own word (/readyz/kms-providers).
func (s *Server) Ready(ctx context.Context) error {
	_, err := do(ctx, s.client.Get().AbsPath("/readyz/kms-providers"))
	return classify(err)
}
