// Package kube runs a real etcd and a real kube-apiserver for the tests and the demo: on loopback, unprivileged, all
// files in one folder, secrets encrypted by the KMS v2 plugin on a given socket. It starts, stops and
// asks those two; the plugin is its caller's. Several API servers on one etcd of several members are several Clusters that
// share their Members.
//
// All are children of this process and die with it (package proc).
package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// ProviderName is the name of the KMS provider in the EncryptionConfiguration, and so in what etcd holds.
const ProviderName = "hsm-kms"

// grace is how long a process may take to end by itself.
const grace = 15 * time.Second

// Options say what to run.
type Options struct {
	Bin       kubebin.Set
	Dir       string   // for all files and logs; made if need be
	Socket    string   // of the KMS plugin; absolute
	Resources []string // to encrypt, as in an EncryptionConfiguration; empty: secrets
	Args      []string // more flags for kube-apiserver
	Etcd      *Members // that others share and that the caller starts and stops; nil: one member of its own
}

// Cluster is one kube-apiserver, and the etcd that it uses. Start, stop and restart them from one goroutine; requests may come from many.
type Cluster struct {
	opts   Options
	token  string // of a user in system:masters, the same on every API server of this etcd
	port   int    // of the API server
	etcd   *Members
	server *proc.Process

	mu     sync.Mutex   // guards the two below
	http   *http.Client // nil until the API server has made its certificate
	client *clientv3.Client
}

// New writes the files that the two need and starts nothing.
func New(opts Options) (*Cluster, error) {
	if len(opts.Resources) == 0 {
		opts.Resources = []string{"secrets"}
	}
	c := &Cluster{opts: opts}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the API server: %w", err)
	}
	ports, err := FreePorts(1)
	if err != nil {
		return nil, err
	}
	c.port, c.etcd = ports[0], opts.Etcd
	if c.etcd == nil {
		if c.etcd, err = NewMembers(opts.Bin, opts.Dir, 1); err != nil {
			return nil, err
		}
	}
	c.token = c.etcd.token
	if err := c.writeFiles(); err != nil {
		return nil, err
	}
	return c, nil
}

// Start runs etcd and the API server and waits until both are ready: 4 to 10 seconds. On an error nothing keeps running.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	c, err := New(opts)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{c.StartEtcd, c.StartAPIServer, c.WaitReady} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, c.Stop())
		}
	}
	return c, nil
}

// StartEtcd starts the cluster's own etcd on its data and waits until it answers.
func (c *Cluster) StartEtcd(ctx context.Context) error {
	if err := c.etcd.Launch(0); err != nil {
		return err
	}
	return c.etcd.WaitReady(ctx)
}

// StartAPIServer starts kube-apiserver and does not wait for it: the plugin may not be there yet. See WaitReady.
func (c *Cluster) StartAPIServer(context.Context) error {
	p, err := proc.Start(proc.Spec{
		Name: "kube-apiserver", Path: c.opts.Bin.Path("kube-apiserver"), Log: c.path("kube-apiserver.log"),
		Args: slices.Concat([]string{
			"--etcd-servers=" + strings.Join(c.etcd.URLs(), ","),
			"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.port),
			"--cert-dir=" + c.path("certs"), "--token-auth-file=" + c.path("tokens.csv"), "--authorization-mode=RBAC",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24",
			"--service-account-key-file=" + c.path("sa.pem"), "--service-account-signing-key-file=" + c.path("sa.pem"),
			"--endpoint-reconciler-type=none", // there is no node and nobody to reach 127.0.0.1 from
			"--encryption-provider-config=" + c.path("encryption.yaml"),
		}, c.opts.Args),
	})
	if err != nil {
		return err
	}
	c.server = p
	return nil
}

// WaitReady waits until /readyz is green, or the API server ends, or the context does; the error holds what /readyz
// said last and the end of the log.
func (c *Cluster) WaitReady(ctx context.Context) error {
	return poll(ctx, c.server, "kube-apiserver", func(ctx context.Context) (string, error) {
		code, body, err := c.Health(ctx, "/readyz")
		if err != nil || code == http.StatusOK {
			return "", err
		}
		return body, fmt.Errorf("%s", http.StatusText(code))
	})
}

// poll asks every 100 ms until probe gives no error.
func poll(ctx context.Context, p *proc.Process, name string, probe func(context.Context) (string, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		said, err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w (last: %w %s)\n%s", name, context.Cause(ctx), err, said, p.Tail(20))
		case <-p.Done():
			return fmt.Errorf("starting %s: it ended with %v; the end of its log:\n%s", name, p.Err(), p.Tail(20))
		case <-tick.C:
		}
	}
}

// StopAPIServer ends the API server and waits.
func (c *Cluster) StopAPIServer() error {
	if c.server == nil {
		return nil
	}
	return c.server.Stop(grace)
}

// RestartAPIServer ends the API server, starts another on the same data and port, and waits until it is ready.
func (c *Cluster) RestartAPIServer(ctx context.Context) error {
	if err := c.StopAPIServer(); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// Stop ends the API server, then etcd if it is its own. What never started is no error.
func (c *Cluster) Stop() error {
	err := c.StopAPIServer()
	c.mu.Lock()
	if c.client != nil {
		err = errors.Join(err, c.client.Close())
		c.client = nil
	}
	c.mu.Unlock()
	if c.opts.Etcd == nil {
		err = errors.Join(err, c.etcd.Stop())
	}
	return err
}

// APIServer is the API server's process, nil before StartAPIServer.
func (c *Cluster) APIServer() *proc.Process { return c.server }

// Log gives the last n lines of the API server's log.
func (c *Cluster) Log(n int) string { return proc.Tail(c.path("kube-apiserver.log"), n) }

// EncryptionConfig is the path of the EncryptionConfiguration that the API server was started with.
func (c *Cluster) EncryptionConfig() string { return c.path("encryption.yaml") }

func (c *Cluster) path(name string) string { return filepath.Join(c.opts.Dir, name) }
