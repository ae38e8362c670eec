package live_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// member says which cluster it belongs to, and that it holds nothing.
type member struct {
	pb.UnimplementedKVServer
	pb.UnimplementedMaintenanceServer
	cluster uint64
	id      uint64
	log     atomic.Uint64 // what it has written since it was first asked
	writes  bool          // meanwhile
}

func (m *member) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: m.cluster, Revision: 1}}, nil
}

func (m *member) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	if m.writes {
		m.log.Add(1)
	}
	n := m.log.Load()
	return &pb.StatusResponse{
		Header: &pb.ResponseHeader{ClusterId: m.cluster, MemberId: m.id, Revision: 1 + int64(n)}, RaftIndex: 100 + m.id + n, RaftAppliedIndex: 90 + m.id + n, RaftTerm: m.id,
	}, nil
}

func serve(t *testing.T, cluster, id uint64) string {
	t.Helper()
	return (&member{cluster: cluster, id: id}).serve(t)
}

func (m *member) serve(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterKVServer(server, m)
	pb.RegisterMaintenanceServer(server, m)
	go func() { _ = server.Serve(lis) }() // ends with Stop
	t.Cleanup(server.Stop)
	return "http://" + lis.Addr().String()
}

// Each endpoint is asked: the client might happen to read from those of one cluster alone. One that is down is done without.
func TestMembers(t *testing.T) {
	t.Parallel()
	one, same, other := serve(t, 0xa, 1), serve(t, 0xa, 2), serve(t, 0xb, 3)
	for name, test := range map[string]struct {
		endpoints []string
		said      string
	}{
		"one":                 {[]string{one}, ""},
		"two of one cluster":  {[]string{one, same}, ""},
		"two of two clusters": {[]string{one, same, other}, "different clusters: a, and b at " + other},
		"one is down":         {[]string{one, "http://127.0.0.1:1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := live.Open(live.Config{Endpoints: test.endpoints, Prefixes: []string{"/registry"}})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			_, err = e.Read(t.Context(), evidence.Pinned, func([]evidence.Object) error { return nil })
			if test.said == "" && err != nil || test.said != "" && (err == nil || !strings.Contains(err.Error(), test.said) || hint.Of(err) == "") {
				t.Errorf("error = %v (hint %q), want %q", err, hint.Of(err), test.said)
			}
		})
	}
}

// A reading says how far each member's log goes, and which endpoints said nothing of it.
func TestMembersSay(t *testing.T) {
	t.Parallel()
	two, one := serve(t, 0xa, 2), serve(t, 0xa, 1)
	e, err := live.Open(live.Config{Endpoints: []string{two, one, two, "http://127.0.0.1:1"}, Prefixes: []string{"/registry"}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	reading, err := e.Read(t.Context(), evidence.Pinned, func([]evidence.Object) error { return nil })
	want := []evidence.Member{{ID: "1", Revision: 1, RaftIndex: 91, RaftTerm: 1}, {ID: "2", Revision: 1, RaftIndex: 92, RaftTerm: 2}}
	if err != nil || !slices.Equal(reading.Members, want) || len(reading.Notes) != 1 || !strings.Contains(reading.Notes[0], "http://127.0.0.1:1") {
		t.Errorf("reading = %+v, %v", reading, err)
	}
}

// Two names of one etcd are found out, and two etcds that have the same ids are told apart.
func TestSame(t *testing.T) {
	t.Parallel()
	at := func(cluster, id, log uint64, writes bool) string {
		m := &member{cluster: cluster, id: id, writes: writes}
		m.log.Store(log)
		return m.serve(t)
	}
	open := func(endpoints ...string) *live.Etcd {
		e, err := live.Open(live.Config{Endpoints: endpoints, Prefixes: []string{"/registry"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = e.Close() })
		return e
	}
	one, two, down := at(0xa, 1, 50, true), at(0xa, 2, 0, false), "http://127.0.0.1:1"
	alias := strings.Replace(one, "127.0.0.1", "localhost", 1)
	for name, test := range map[string]struct {
		a, b *live.Etcd
		same bool
	}{
		"two names":             {open(one), open(alias), true},
		"a part of its members": {open(two, one), open(down, alias), true},
		"other members":         {open(one), open(two), false},
		"the same ids, behind":  {open(one), open(at(0xa, 1, 5, false)), false},
		"the same ids, ahead":   {open(one), open(at(0xa, 1, 5000, true)), false},
		"another cluster":       {open(one), open(at(0xb, 1, 50, false)), false},
		"no etcds":              {open(at(0, 0, 0, false)), open(at(0, 0, 0, false)), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if same := live.Same(t.Context(), test.a, test.b); same != test.same {
				t.Errorf("Same = %v", same)
			}
		})
	}
}
