package live_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
)

// fakeEtcd is an etcd in memory, with its revisions and watches, that can be made to misbehave. Its fields are set before
// it is read, or by before.
type fakeEtcd struct {
	pb.UnimplementedKVServer
	pb.UnimplementedMaintenanceServer
	pb.UnimplementedWatchServer

	pageMu sync.Mutex // a reader that gave up leaves its page behind, which is then asked for beside the next one
	pages  int

	mu        sync.Mutex
	written   *sync.Cond // history grew, or a stream ended
	revision  int64
	compacted int64
	history   []*mvccpb.KeyValue // in order of revision; a nil value: deleted
	sizes     []int

	before   func(page int) // called ahead of each page, to change things under the reader's feet
	maxBytes int            // an answer may have; 0: any
	fail     error
	cluster  uint64 // 0: 0xabc
	kine     bool   // its cluster id is 0
	term     uint64
	denied   string // a range that begins below it may be neither read nor watched
	version  string
	// Where it differs from an etcd; nil: nowhere.
	page  func(*pb.RangeRequest, *pb.RangeResponse)
	watch func(*pb.WatchResponse) []*pb.WatchResponse
}

func newFake() *fakeEtcd {
	f := &fakeEtcd{version: "3.7.0"}
	f.written = sync.NewCond(&f.mu)
	return f
}

func (f *fakeEtcd) put(key string, value []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision++
	f.history = append(f.history, &mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: f.revision})
	f.written.Broadcast()
}

func (f *fakeEtcd) delete(key string) { f.put(key, nil) }

// compact forgets everything before the newest revision.
func (f *fakeEtcd) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compacted = f.revision
}

// serve gives a client of it.
func (f *fakeEtcd) serve(t *testing.T, prefixes ...string) *live.Etcd {
	t.Helper()
	if prefixes == nil {
		prefixes = []string{"/registry"}
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterKVServer(server, f)
	pb.RegisterMaintenanceServer(server, f)
	pb.RegisterWatchServer(server, f)
	go func() { _ = server.Serve(lis) }() // ends with Stop
	e, err := live.Open(live.Config{Endpoints: []string{"http://" + lis.Addr().String()}, Prefixes: prefixes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = e.Close()
		server.Stop()
	})
	return e
}

func (f *fakeEtcd) header(revision int64) *pb.ResponseHeader {
	cluster := cmp.Or(f.cluster, 0xabc)
	if f.kine {
		cluster = 0
	}
	return &pb.ResponseHeader{Revision: revision, ClusterId: cluster, RaftTerm: f.term, MemberId: 1}
}

func (f *fakeEtcd) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.StatusResponse{Header: f.header(f.revision), Version: f.version, RaftIndex: 9, RaftTerm: f.term}, nil
}

func (f *fakeEtcd) Range(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	if !req.CountOnly {
		f.nextPage()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	revision := cmp.Or(req.Revision, f.revision)
	switch {
	case f.fail != nil:
		return nil, f.fail
	case string(req.Key) < f.denied:
		return nil, rpctypes.ErrGRPCPermissionDenied
	case revision < f.compacted:
		return nil, rpctypes.ErrGRPCCompacted
	}
	kvs := f.at(revision, string(req.Key), string(req.RangeEnd))
	resp := &pb.RangeResponse{Header: f.header(f.revision), Count: int64(len(kvs))}
	if !req.CountOnly {
		if limit := int(req.Limit); limit > 0 && len(kvs) > limit {
			kvs, resp.More = kvs[:limit], true
		}
		resp.Kvs = kvs
	}
	if f.page != nil {
		f.page(req, resp)
	}
	size := proto.Size(resp)
	if f.maxBytes > 0 && size > f.maxBytes {
		return nil, status.Error(codes.ResourceExhausted, "grpc: received message larger than max")
	}
	f.sizes = append(f.sizes, size)
	return resp, nil
}

func (f *fakeEtcd) nextPage() {
	f.pageMu.Lock()
	defer f.pageMu.Unlock()
	f.pages++
	if f.before != nil {
		f.before(f.pages)
	}
}

// at is what stood in [start, end) at a revision.
func (f *fakeEtcd) at(revision int64, start, end string) []*mvccpb.KeyValue {
	newest := map[string]*mvccpb.KeyValue{}
	for _, kv := range f.history {
		if kv.ModRevision <= revision && inRange(string(kv.Key), start, end) {
			newest[string(kv.Key)] = kv
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

func inRange(key, start, end string) bool {
	return key == start || end != "" && key >= start && (key < end || end == "\x00")
}

// fakeWatch is one watch of a stream.
type fakeWatch struct{ start, end string }

// Watch implements the part of etcd that watches: each write in an answer of its own.
func (f *fakeEtcd) Watch(stream pb.Watch_WatchServer) error {
	var watches []fakeWatch // by id
	told, asked, ended := int64(0), 0, false
	answer := func(resp *pb.WatchResponse) error {
		all := []*pb.WatchResponse{resp}
		if f.watch != nil {
			all = f.watch(resp)
		}
		for _, resp := range all {
			if resp == nil {
				return errors.New("ended as it was told")
			}
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		return nil
	}
	go func() {
		for {
			req, err := stream.Recv()
			f.mu.Lock()
			if create := req.GetCreateRequest(); create != nil {
				watches = append(watches, fakeWatch{string(create.Key), string(create.RangeEnd)})
			} else if req.GetProgressRequest() != nil {
				asked++
			}
			ended = ended || err != nil
			f.written.Broadcast()
			f.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	created := 0
	for !ended {
		var out *pb.WatchResponse
		switch {
		case created < len(watches):
			out = &pb.WatchResponse{Header: f.header(f.revision), WatchId: int64(created), Created: true}
			if watches[created].start < f.denied {
				out.Canceled, out.CancelReason = true, rpctypes.ErrPermissionDenied.Error()
			}
			if created == 0 {
				told = f.revision
			}
			created++
		case created > 0 && told < f.revision:
			kv := f.history[told]
			told++
			for id, w := range watches[:created] {
				if inRange(string(kv.Key), w.start, w.end) {
					event := &mvccpb.Event{Kv: kv}
					if kv.Value == nil {
						event.Type = mvccpb.Event_DELETE
					}
					out = &pb.WatchResponse{Header: f.header(told), WatchId: int64(id), Events: []*mvccpb.Event{event}}
				}
			}
		case asked > 0:
			asked--
			out = &pb.WatchResponse{Header: f.header(told), WatchId: -1}
		default:
			f.written.Wait()
		}
		if out == nil {
			continue
		}
		f.mu.Unlock()
		err := answer(out)
		f.mu.Lock()
		if err != nil {
			return err
		}
	}
	return io.EOF
}

var errRefused = errors.New("refused")

// state is what ReadWhole gave in the end, and how often it began.
func state(t *testing.T, e evidence.Source) (got map[string]string, reading evidence.Reading, tries int, err error) {
	t.Helper()
	reading, err = evidence.ReadWhole(t.Context(), e, func(corrected bool) func([]evidence.Object) error {
		tries++
		got = map[string]string{}
		return func(page []evidence.Object) error {
			for _, o := range page {
				if _, again := got[string(o.Key)]; again && !o.Corrects || o.Corrects && !corrected {
					t.Errorf("%s was given twice", o.Key)
				}
				if got[string(o.Key)] = string(o.Value); o.Deleted {
					delete(got, string(o.Key))
				}
			}
			return nil
		}
	})
	return got, reading, tries, err
}
