// Package live reads a running etcd as an evidence.Source, as gently as it reads it completely: in pages sized by bytes,
// at one revision, with nothing held back but the page at hand and the next one. Only reading may live here.
//
// Compaction (every 5 minutes under kube-apiserver) can take that revision away from a long reading. It then goes on at
// a newer one, and at its end looks once more at the ranges that were read at an older revision, for what was written
// since: that delta needs no fixed revision, so no compaction can stop it. What it finds is counted beside what was
// counted before, which may be the same object in its older form; Reading.Changed says how many there are.
package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

const (
	dialTimeout = 5 * time.Second
	// callTimeout bounds one request: a page takes well below a second from an etcd that is well.
	callTimeout = 30 * time.Second
	// maxAnswer bounds one answer of etcd in bytes; a page that is larger is asked for in smaller pieces.
	maxAnswer = 64 << 20
)

// Config says which etcd. The files are those of etcdctl.
type Config struct {
	Endpoints                 []string
	CAFile, CertFile, KeyFile string // empty: the system's CAs; no client certificate
	Prefixes                  []string
	Progress                  evidence.Progress
}

// Etcd is a client of one etcd cluster.
type Etcd struct {
	kv        clientv3.KV
	ask       asker // what an endpoint says of itself; nil: nobody asks
	addresses []string
	close     func() error
	name      string
	ranges    []keyRange
	prefixes  []string
	progress  evidence.Progress
}

var _ evidence.Source = (*Etcd)(nil)

// Open makes the client; nothing is asked yet. The caller closes it.
func Open(cfg Config) (*Etcd, error) {
	clientConfig := clientv3.Config{
		Endpoints: cfg.Endpoints, DialTimeout: dialTimeout, MaxCallRecvMsgSize: maxAnswer, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(soon())},
	}
	if cfg.CAFile != "" || cfg.CertFile != "" || slices.ContainsFunc(cfg.Endpoints, isTLS) {
		info := transport.TLSInfo{TrustedCAFile: cfg.CAFile, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile}
		tls, err := info.ClientConfig()
		if err != nil {
			return nil, hint.Wrap(fmt.Errorf("reading etcd's certificates: %w", err), "see --cacert, --cert and --key; run as a user that can read them")
		}
		clientConfig.TLS = tls
	}
	client, err := clientv3.New(clientConfig)
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd: %w", err)
	}
	e := New(client, cfg)
	e.ask, e.addresses, e.close = client.Status, cfg.Endpoints, client.Close
	return e, nil
}

// soon lets calls fail with what is wrong with the connection, after the client's own retries (3 s), until etcd has
// answered once. The client by itself waits for a connection until the deadline and then tells of the deadline only: a
// wrong address or certificate would not be said. Later it is right to wait: an etcd that restarts comes back.
func soon() grpc.UnaryClientInterceptor {
	var answered atomic.Bool
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if !answered.Load() {
			opts = append(slices.Clone(opts), grpc.WaitForReady(false))
		}
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err == nil {
			answered.Store(true)
		}
		return err
	}
}

func isTLS(endpoint string) bool {
	return strings.HasPrefix(endpoint, "https://") || strings.HasPrefix(endpoint, "unixs://")
}

// New reads through kv, for a caller that has a client already.
func New(kv clientv3.KV, cfg Config) *Etcd {
	return &Etcd{
		kv: kv, close: func() error { return nil }, name: strings.Join(cfg.Endpoints, ","),
		ranges: rangesOf(cfg.Prefixes), prefixes: cfg.Prefixes, progress: cfg.Progress,
	}
}

// Close closes the client.
func (e *Etcd) Close() error { return e.close() }

// keyRange is [start, end) of etcd's keys.
type keyRange struct{ start, end string }

// rangesOf are those below the prefixes, without the ones that another contains.
func rangesOf(prefixes []string) []keyRange {
	var ranges []keyRange
	for _, prefix := range prefixes {
		start := prefix + "/"
		contained := slices.ContainsFunc(prefixes, func(other string) bool {
			return other != prefix && strings.HasPrefix(start, other+"/")
		})
		r := keyRange{start, prefix + "0"} // "0" follows "/"
		if !contained && !slices.Contains(ranges, r) {
			ranges = append(ranges, r)
		}
	}
	return ranges
}

// Find implements evidence.Source.
func (e *Etcd) Find(ctx context.Context, key string) (evidence.Object, error) {
	resp, err := e.get(ctx, key)
	if err != nil {
		return evidence.Object{}, fmt.Errorf("reading %s from etcd: %w", evidence.Printable(key), err)
	}
	if len(resp.Kvs) == 0 {
		return evidence.Object{}, fmt.Errorf("%w: %s is not in etcd", evidence.ErrNotFound, evidence.Printable(key))
	}
	kv := resp.Kvs[0]
	return evidence.Object{Key: kv.Key, Value: kv.Value, Revision: kv.ModRevision}, nil
}

// get asks etcd once.
func (e *Etcd) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	callCtx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("etcd did not answer within %s", callTimeout))
	defer cancel()
	resp, err := e.kv.Get(callCtx, key, opts...)
	if err == nil || ctx.Err() != nil {
		return resp, err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w (%w)", context.Cause(callCtx), err)
	}
	return nil, hint.Wrap(err, "see that etcd answers at "+e.name+", and that --cacert, --cert and --key are those of a client that it trusts")
}
