// Package live reads a running etcd as an evidence.Source, as gently as it reads it completely: in pages sized by bytes, two
// at a time, with nothing held back but the pages at hand and the next ones. It asks etcd for keys, the status of each endpoint and the roles
// of its own user, and writes nothing. It depends on evidence, envelope/stored, hint and etcd's client.
//
// # One state
//
// A reading is first tried Pinned: every page is asked for at the revision of the first answer. What is below that
// revision in etcd does not change, so the pages are one state. Compaction can take the revision away. The reading is then
// tried again, Followed, which no compaction of what was read already can disturb:
//
//  1. A watch is begun. etcd says in its answer that it will tell of every write after a revision w.
//  2. The pages are read, each at the newest revision p of its answer, which is at least w: reads are linearizable, and an
//     answer with an older revision than one before it is refused.
//  3. e is the highest revision of the pages and of the events so far. Events are taken until all up to e are there, and
//     later ones are left out.
//  4. What is reported of a key is its newest event in (w, e], or, without one, what its page had.
//
// That is the state at e. The page of a key is its state at some p with w <= p <= e. If the key was not written in (p, e]
// and not in (w, p], the page's value is that of e, and there is no event. If it was written in (w, e], its last such write
// is its state at e, and it is the newest of the events, because all of them came. A key that was deleted is the same, with
// an event that says so; one that was made has an event.
//
// All events up to e are there, because etcd sends those of a watch in order of revisions and a revision's all together.
// Where the watch is over all keys it can be checked and is: every revision of etcd is a write, so revisions without a gap
// from w to e are all of them. Where this client may watch some ranges only, revisions of other keys are not seen; there
// etcd's own word for it is used (a progress notification), which it gives from 3.4.31 and 3.5.13 on for a request: earlier
// ones could overtake events (etcd issues 15220 and 17507).
//
// A watch that ends, for whatever reason, a gap, too much to hold, or nothing heard for too long make an error that wraps
// evidence.ErrNotWhole.
//
// # Parts
//
// For each page etcd counts all that follows in the range that is asked for, so a large span costs it time by the square of its
// objects. A span is therefore read in parts: behind a page that much follows, the range is cut where keys begin to differ. Where
// that is matters for speed only: parts are neighbours, of which the end of one is the start of the next, and together they are the
// span. Two streams read parts at once, so that etcd makes a page while another one is decoded. All read at one revision
// (Pinned), or each page at one that is newer than the beginning of the watch (Followed), as above. What was read of a span is
// compared with etcd's count of it at the end.
//
// # Limits
//
// The answers may come from anybody. Each is limited in bytes and in parts before it is decoded; pages must be in order,
// inside what was asked for, not longer than asked for, and as many as etcd counted; revisions must not fall. A reading
// is limited in objects, in the time that it waits for etcd, and in what it holds of what was written meanwhile.
package live

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

const (
	dialTimeout = 5 * time.Second
	// patience bounds the wait for one answer, and for what a watch has to tell: a page takes well below a second from an
	// etcd that is well.
	patience = 30 * time.Second
	// maxAnswer bounds one answer of etcd in bytes; a page that is larger is asked for in smaller pieces. etcd advises
	// against objects of more than 10 MiB, and takes 1.5 MiB unless told otherwise.
	maxAnswer = 16 << 20
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
	client   *clientv3.Client
	cfg      Config
	name     string
	user     string // of etcd, by the client certificate; empty: none
	progress evidence.Progress
	patience time.Duration
	farSight int64
}

var _ evidence.Source = (*Etcd)(nil)

// Open makes the client; nothing is asked yet. The caller closes it.
func Open(cfg Config) (*Etcd, error) {
	clientConfig := clientv3.Config{
		Endpoints: cfg.Endpoints, DialTimeout: dialTimeout, MaxCallRecvMsgSize: maxAnswer, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(soon()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())),
		},
	}
	e := &Etcd{cfg: cfg, name: strings.Join(cfg.Endpoints, ","), progress: cfg.Progress, patience: patience, farSight: farSight}
	if cfg.CAFile != "" || cfg.CertFile != "" || slices.ContainsFunc(cfg.Endpoints, isTLS) {
		info := transport.TLSInfo{TrustedCAFile: cfg.CAFile, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile}
		config, err := info.ClientConfig()
		if err == nil && cfg.CertFile != "" {
			e.user, err = commonName(cfg.CertFile, cfg.KeyFile)
		}
		if err != nil {
			return nil, hint.Wrap(fmt.Errorf("reading etcd's certificates: %w", err), "see --cacert, --cert and --key; run as a user that can read them")
		}
		clientConfig.TLS = config
	}
	client, err := clientv3.New(clientConfig)
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd: %w", err)
	}
	e.client = client
	return e, nil
}

// commonName is what etcd takes for the name of its user.
func commonName(certFile, keyFile string) (string, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return "", err
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return "", err
	}
	return leaf.Subject.CommonName, nil
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

// Close closes the client.
func (e *Etcd) Close() error { return e.client.Close() }

// Find implements evidence.Source.
func (e *Etcd) Find(ctx context.Context, key string) (evidence.Object, error) {
	resp, err := e.get(ctx, key)
	if err == nil && len(resp.Kvs) > 0 && string(resp.Kvs[0].GetKey()) != key {
		err = e.broken("it answered with another key")
	}
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
	callCtx, cancel := context.WithTimeoutCause(ctx, e.patience, fmt.Errorf("etcd did not answer within %s", e.patience))
	defer cancel()
	resp, err := e.client.Get(callCtx, key, opts...)
	if err == nil && resp.Header == nil {
		err = e.broken("its answer has no header")
	}
	if err == nil || ctx.Err() != nil {
		return resp, err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w (%w)", context.Cause(callCtx), err)
	}
	return nil, hint.Wrap(err, e.unreached())
}

// unreached says what to look at when etcd does not answer.
func (e *Etcd) unreached() string {
	advice := "check that etcd answers at " + e.name + ", and that --cacert, --cert and --key are those of a client that it trusts"
	if slices.ContainsFunc(e.cfg.Endpoints, func(endpoint string) bool { return !isTLS(endpoint) }) {
		advice += "; if it serves TLS, as kubeadm's does, begin its address with https://"
	}
	return advice
}

// errBroken: what answers does not answer as an etcd does.
var errBroken = errors.New("the answers of etcd are not consistent")

// broken says what an etcd that is well does not do.
func (e *Etcd) broken(format string, args ...any) error {
	return hint.Wrap(fmt.Errorf("%w: %s", errBroken, fmt.Sprintf(format, args...)),
		"see what answers at "+e.name+": a proxy, members of several clusters, or a damaged member; nothing that was read counts")
}

// watch begins a stream of watches.
func (e *Etcd) watch(ctx context.Context) (pb.Watch_WatchClient, error) {
	return pb.NewWatchClient(e.client.ActiveConnection()).Watch(clientv3.WithRequireLeader(ctx), grpc.MaxCallRecvMsgSize(maxAnswer))
}
