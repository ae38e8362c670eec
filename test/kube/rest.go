package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// Meta is the part of an object's metadata that the tests look at.
type Meta struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace,omitempty"`
	ResourceVersion string            `json:"resourceVersion,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

// Secret is a v1 Secret; encoding/json does the base64 of its data.
type Secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   Meta              `json:"metadata"`
	Data       map[string][]byte `json:"data"`
}

// ConfigMap is a v1 ConfigMap.
type ConfigMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   Meta              `json:"metadata"`
	Data       map[string]string `json:"data"`
}

// StatusError is an answer of the API server other than 2xx.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("API server: %d: %s", e.Code, e.Message) }

// CreateNamespace makes a namespace. One that exists is a StatusError 409.
func (c *Cluster) CreateNamespace(ctx context.Context, name string) error {
	in := object{"apiVersion": "v1", "kind": "Namespace", "metadata": Meta{Name: name}}
	return c.Do(ctx, http.MethodPost, "/api/v1/namespaces", in, nil)
}

// CreateSecret makes a Secret.
func (c *Cluster) CreateSecret(ctx context.Context, namespace, name string, data map[string][]byte) error {
	in := Secret{APIVersion: "v1", Kind: "Secret", Metadata: Meta{Name: name}, Data: data}
	return c.Do(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/secrets", in, nil)
}

// GetSecret reads a Secret.
func (c *Cluster) GetSecret(ctx context.Context, namespace, name string) (Secret, error) {
	var out Secret
	return out, c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+namespace+"/secrets/"+name, nil, &out)
}

// CreateConfigMap makes a ConfigMap.
func (c *Cluster) CreateConfigMap(ctx context.Context, namespace, name string, data map[string]string) error {
	in := ConfigMap{APIVersion: "v1", Kind: "ConfigMap", Metadata: Meta{Name: name}, Data: data}
	return c.Do(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/configmaps", in, nil)
}

// GetConfigMap reads a ConfigMap.
func (c *Cluster) GetConfigMap(ctx context.Context, namespace, name string) (ConfigMap, error) {
	var out ConfigMap
	return out, c.Do(ctx, http.MethodGet, "/api/v1/namespaces/"+namespace+"/configmaps/"+name, nil, &out)
}

// Do makes one request as an administrator; in and out are JSON, nil for none. An answer other than 2xx is a *StatusError.
func (c *Cluster) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	code, data, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	if code/100 != 2 {
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(data, &status) != nil || status.Message == "" {
			status.Message = strings.TrimSpace(string(data))
		}
		return fmt.Errorf("%s %s: %w", method, path, &StatusError{code, status.Message})
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decoding the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// Health asks a health endpoint (/livez, /readyz, /readyz/kms-providers) and gives its code and text.
func (c *Cluster) Health(ctx context.Context, path string) (code int, text string, err error) {
	code, data, err := c.request(ctx, http.MethodGet, path, nil)
	return code, string(data), err
}

func (c *Cluster) request(ctx context.Context, method, path string, body io.Reader) (int, []byte, error) {
	client, err := c.httpClient()
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL()+path, body)
	if err != nil {
		return 0, nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Content-Type", "application/json")
	return do(client, req)
}

// URL is the API server's address.
func (c *Cluster) URL() string { return "https://" + loopback(c.port) }

// httpClient trusts the certificate that the API server made for itself at its first start; before that there is none.
func (c *Cluster) httpClient() (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil {
		return c.http, nil
	}
	pool, err := c.Roots()
	if err != nil {
		return nil, err
	}
	tlsConfig := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig}, Timeout: 30 * time.Second}
	return c.http, nil
}

// Roots has the certificate that the API server made for itself at its first start; before that it is an error.
func (c *Cluster) Roots() (*x509.CertPool, error) {
	data, err := os.ReadFile(c.path("certs/apiserver.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading the API server's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("reading the API server's certificate: not written yet")
	}
	return pool, nil
}

// Token is an administrator's bearer token, for a client of one's own.
func (c *Cluster) Token() string { return c.token }

func get(ctx context.Context, client *http.Client, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", fmt.Errorf("making a request: %w", err)
	}
	code, data, err := do(client, req)
	return code, string(data), err
}

// do reads at most 32 MiB of an answer.
func do(client *http.Client, req *http.Request) (int, []byte, error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("asking: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("reading the answer of %s: %w", req.URL, err)
	}
	return resp.StatusCode, data, nil
}
