package live_test

import (
	"cmp"
	"context"
	"errors"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeKV is an etcd in memory, with its revisions. before is called ahead of each page, to change things under the
// reader's feet.
type fakeKV struct {
	clientv3.KV
	revision  int64
	compacted int64
	history   []*mvccpb.KeyValue // in order of revision; a nil value: deleted
	before    func(page int)
	pages     int
	sizes     []int
	maxBytes  int // an answer may have; 0: any
	fail      error
	cluster   uint64 // 0: 0xabc
	term      uint64
	denied    string // a range that begins below it may not be read
}

func (f *fakeKV) put(key string, value []byte) {
	f.revision++
	f.history = append(f.history, &mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: f.revision})
}

func (f *fakeKV) delete(key string) { f.put(key, nil) }

// compact forgets everything before the newest revision.
func (f *fakeKV) compact() { f.compacted = f.revision }

func (f *fakeKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	op := clientv3.OpGet(key, opts...)
	if !op.IsCountOnly() {
		f.pages++
		if f.before != nil {
			f.before(f.pages)
		}
	}
	revision := cmp.Or(op.Rev(), f.revision)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case f.fail != nil:
		return nil, f.fail
	case key < f.denied:
		return nil, rpctypes.ErrPermissionDenied
	case revision < f.compacted:
		return nil, rpctypes.ErrCompacted
	}
	kvs := f.at(revision, key, string(op.RangeBytes()))
	resp := &clientv3.GetResponse{Header: &pb.ResponseHeader{Revision: f.revision, ClusterId: cmp.Or(f.cluster, 0xabc), RaftTerm: f.term}, Count: int64(len(kvs))}
	if op.IsCountOnly() {
		return resp, nil
	}
	if limit := int(op.Limit()); limit > 0 && len(kvs) > limit {
		kvs, resp.More = kvs[:limit], true
	}
	bytes := 0
	for _, kv := range kvs {
		bytes += len(kv.Value)
	}
	if f.maxBytes > 0 && bytes > f.maxBytes {
		return nil, status.Error(codes.ResourceExhausted, "grpc: received message larger than max")
	}
	f.sizes = append(f.sizes, bytes)
	resp.Kvs = kvs
	return resp, nil
}

// at is what stood in [start, end) at a revision.
func (f *fakeKV) at(revision int64, start, end string) []*mvccpb.KeyValue {
	newest := map[string]*mvccpb.KeyValue{}
	for _, kv := range f.history {
		if key := string(kv.Key); kv.ModRevision <= revision && (key == start || end != "" && key >= start && (key < end || end == "\x00")) {
			newest[key] = kv
		}
	}
	var kvs []*mvccpb.KeyValue
	for _, kv := range newest {
		if kv.Value != nil {
			kvs = append(kvs, kv)
		}
	}
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(string(a.Key), string(b.Key)) })
	return kvs
}

var errRefused = errors.New("refused")
