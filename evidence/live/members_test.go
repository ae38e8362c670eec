package live_test

import (
	"context"
	"net"
	"slices"
	"strings"
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
}

func (m *member) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: m.cluster, Revision: 1}}, nil
}

func (m *member) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{
		Header: &pb.ResponseHeader{ClusterId: m.cluster, MemberId: m.id, Revision: 1}, RaftIndex: 100 + m.id, RaftAppliedIndex: 90 + m.id, RaftTerm: m.id,
	}, nil
}

func serve(t *testing.T, cluster, id uint64) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, m := grpc.NewServer(), &member{cluster: cluster, id: id}
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
