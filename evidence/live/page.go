package live

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// Pages are sized so that both ends hold a few MiB: the first is small, the next follow what their objects weighed.
const (
	firstPage = 256     // objects
	largePage = 4096    // objects
	pageBytes = 4 << 20 // what a page aims at
)

// page is what one answer has of a range.
type page struct {
	kvs   []*mvccpb.KeyValue
	after string // where the next page begins; empty: this is the last one
	left  int64  // how many objects follow, by etcd's count
}

// page reads the beginning of a range.
func (s *stream) page(ctx context.Context, at keyRange) (page, error) {
	r := s.reader
	ask := func() (*clientv3.GetResponse, error) {
		return r.get(ctx, at.start, clientv3.WithRange(at.wireEnd()), clientv3.WithLimit(s.limit), clientv3.WithRev(r.pinned))
	}
	resp, err := ask()
	for status.Code(err) == codes.ResourceExhausted && s.limit > 1 && ctx.Err() == nil {
		s.limit /= 2
		resp, err = ask()
	}
	if err != nil {
		return page{}, fmt.Errorf("from %s on: %w", evidence.Printable(at.start), err)
	}
	after, err := s.checkPage(resp, at)
	if err != nil {
		return page{}, err
	}
	s.adapt(resp.Kvs)
	return page{resp.Kvs, after, resp.Count - int64(len(resp.Kvs))}, nil
}

func errTooMany() error {
	return fmt.Errorf("etcd has more than %d objects: this is not the store of a Kubernetes cluster, or somebody fills it", maxObjects)
}

// checkPage: a page goes on where the last one ended, has no more than was asked for and no less than there is.
func (s *stream) checkPage(resp *clientv3.GetResponse, at keyRange) (after string, err error) {
	r, n := s.reader, int64(len(resp.Kvs))
	switch {
	case n > s.limit:
		return "", r.etcd.broken("it gave %d objects, and was asked for %d", n, s.limit)
	case resp.More && n == 0:
		return "", r.etcd.broken("it says that there is more from %s on, and gives nothing", evidence.Printable(at.start))
	case r.countsKeys() && (resp.More && resp.Count <= n || !resp.More && resp.Count != n):
		return "", r.etcd.broken("it counts %d keys from %s on, gives %d, and says of more that it is %t", resp.Count, evidence.Printable(at.start), n, resp.More)
	}
	newest := resp.Header.GetRevision()
	if r.pinned > 0 {
		newest = r.pinned
	}
	from := at.start
	for _, kv := range resp.Kvs {
		key := string(kv.GetKey())
		switch {
		case key < from || !at.contains(key):
			return "", r.etcd.broken("it gives the key %s where one from %s on must come", evidence.Printable(key), evidence.Printable(from))
		case kv.GetModRevision() <= 0 || kv.GetModRevision() > newest:
			return "", r.etcd.broken("it gives %s as of revision %d, and was read at %d", evidence.Printable(key), kv.GetModRevision(), newest)
		}
		from = key + "\x00"
	}
	if resp.More {
		return from, nil
	}
	return "", nil
}

// adapt chooses the size of the next page by the weight of this one. It grows slowly: what comes next may be larger.
func (s *stream) adapt(page []*mvccpb.KeyValue) {
	if len(page) == 0 {
		return
	}
	bytes := int64(0)
	for _, kv := range page {
		bytes += int64(len(kv.GetKey()) + len(kv.GetValue()))
	}
	fits := pageBytes / max(1, bytes/int64(len(page)))
	s.limit = max(1, min(fits, 2*s.limit, largePage))
}
