package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"github.com/hsm-kms/hsm-kms/test/kube"
)

const (
	protobuf       = "application/vnd.kubernetes.protobuf"
	requestTimeout = time.Minute
)

// client asks one API server as controllers do: protobuf, one HTTP/2 connection for all goroutines. It is safe for them.
type client struct {
	http       *http.Client
	url, token string
}

// newClient connects before anything is measured.
func newClient(ctx context.Context, server *kube.Cluster) (*client, error) {
	roots, err := server.Roots()
	if err != nil {
		return nil, err
	}
	c := &client{url: server.URL(), token: server.Token(), http: &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			ForceAttemptHTTP2: true, // a TLS configuration of one's own would turn it off
			TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
	}}
	_, err = c.do(ctx, http.MethodGet, "/version", "application/json", nil)
	return c, err
}

func (c *client) close() { c.http.CloseIdleConnections() }

// list reads all Secrets at once and tells how long it took until the last byte; it must be want of them.
func (c *client) list(ctx context.Context, want int) (time.Duration, error) {
	start := time.Now()
	data, err := c.do(ctx, http.MethodGet, "/api/v1/secrets", protobuf, nil)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return 0, fmt.Errorf("decoding the list: %w", err)
	}
	decoded, _, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return 0, fmt.Errorf("decoding the list: %w", err)
	}
	list, ok := decoded.(*corev1.SecretList)
	if !ok || len(list.Items) != want {
		return 0, fmt.Errorf("listing Secrets: got a %T of %d bytes, and not a list of %d", decoded, len(data), want)
	}
	return took, nil
}

// create makes a Secret from its protobuf form.
func (c *client) create(ctx context.Context, namespace string, secret []byte) error {
	_, err := c.do(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/secrets", protobuf, secret)
	return err
}

// get reads the i-th stored Secret. Without a resourceVersion the API server asks etcd, and not its cache.
func (c *client) get(ctx context.Context, i int) error {
	namespace, name := nameOf(i)
	_, err := c.do(ctx, http.MethodGet, "/api/v1/namespaces/"+namespace+"/secrets/"+name, protobuf, nil)
	return err
}

// cacheFilled is how long the watch cache of Secrets took to fill at the start, as the API server's metrics tell it; 0
// when they do not (before 1.34).
func (c *client) cacheFilled(ctx context.Context) (time.Duration, error) {
	data, err := c.do(ctx, http.MethodGet, "/metrics", "text/plain", nil)
	if err != nil {
		return 0, err
	}
	return filledIn(data), nil
}

// filledIn looks for it in the text of /metrics.
func filledIn(metrics []byte) time.Duration {
	for lines := bufio.NewScanner(bytes.NewReader(metrics)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "} ")
		if !strings.HasPrefix(name, "apiserver_watch_cache_initialization_duration_seconds_sum{") || !strings.Contains(name, `resource="secrets"`) {
			continue
		}
		seconds, err := strconv.ParseFloat(value, 64)
		if err == nil {
			return time.Duration(seconds * float64(time.Second))
		}
	}
	return 0
}

func (c *client) do(ctx context.Context, method, path, kind string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", kind)
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the API server: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %.300q", method, path, resp.Status, data)
	}
	return data, nil
}
