package live

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// askTimeout bounds what an endpoint is asked about itself: one that is down is done without.
const askTimeout = 3 * time.Second

// statuses are what the endpoints say of themselves, in their order; nil: no answer.
func (e *Etcd) statuses(ctx context.Context) []*pb.StatusResponse {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	said := make([]*pb.StatusResponse, len(e.cfg.Endpoints))
	var wg sync.WaitGroup
	for i, address := range e.cfg.Endpoints {
		wg.Go(func() {
			if status, err := e.status(ctx, address); err == nil && status.Header != nil {
				said[i] = status
			}
		})
	}
	wg.Wait()
	return said
}

// status asks an endpoint about itself, once: etcd's client tries for seconds where nobody listens.
func (e *Etcd) status(ctx context.Context, address string) (*pb.StatusResponse, error) {
	conn, err := e.client.Dial(address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // it was used for a question only
	return pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
}

// sameCluster asks every endpoint that answers which cluster it belongs to. The client takes them in turn: of two
// clusters it would read a part of each, or one of them alone, and nobody could tell from what it read.
func (e *Etcd) sameCluster(ctx context.Context) error {
	if len(e.cfg.Endpoints) < 2 {
		return nil
	}
	first := uint64(0)
	for i, status := range e.statuses(ctx) {
		id := uint64(0)
		if status != nil {
			id = status.Header.GetClusterId()
		}
		if first == 0 {
			first = id
		}
		if id != 0 && id != first {
			return otherCluster(first, id, e.cfg.Endpoints[i])
		}
	}
	return nil
}

// members are what the members say of themselves, each once, in order of their ids, and the endpoints that said nothing.
// A store that is no etcd has neither an id nor a log, and is left out.
func (e *Etcd) members(ctx context.Context) (members []evidence.Member, silent []string) {
	for i, status := range e.statuses(ctx) {
		if status == nil {
			silent = append(silent, e.cfg.Endpoints[i])
			continue
		}
		member := evidence.Member{
			ID: strconv.FormatUint(status.Header.GetMemberId(), 16), Revision: status.Header.GetRevision(),
			RaftIndex: cmp.Or(status.RaftAppliedIndex, status.RaftIndex), RaftTerm: status.RaftTerm,
		}
		known := slices.ContainsFunc(members, func(m evidence.Member) bool { return m.ID == member.ID })
		if !known && (status.Header.GetMemberId() != 0 || member.RaftIndex != 0) {
			members = append(members, member)
		}
	}
	slices.SortFunc(members, func(a, b evidence.Member) int { return strings.Compare(a.ID, b.ID) })
	return members, silent
}

// Same reports whether two clients read one etcd, by whichever names. Ids do not show it: etcd makes them of addresses and
// --initial-cluster-token, and two with its defaults on two machines have the same. But of one member, what b is told lies
// between what a is told before and after. A store that is no etcd has no ids, and a member that does not answer is not known.
func Same(ctx context.Context, a, b *Etcd) bool {
	before, between, after := a.logs(ctx), b.logs(ctx), a.logs(ctx)
	for member, is := range between {
		was, known := before[member]
		will, still := after[member]
		if known && still && was.index <= is.index && is.index <= will.index && was.revision <= is.revision && is.revision <= will.revision {
			return true
		}
	}
	return false
}

// memberID is unique in an etcd, and may be that of a member of another one too.
type memberID struct{ cluster, member uint64 }

// progress is how far a member has come.
type progress struct {
	index    uint64
	revision int64
}

func (e *Etcd) logs(ctx context.Context) map[memberID]progress {
	found := map[memberID]progress{}
	for _, status := range e.statuses(ctx) {
		if status != nil && status.Header.GetClusterId() != 0 {
			id := memberID{status.Header.GetClusterId(), status.Header.GetMemberId()}
			found[id] = progress{cmp.Or(status.RaftAppliedIndex, status.RaftIndex), status.Header.GetRevision()}
		}
	}
	return found
}

// otherCluster is about endpoints that are not members of one etcd.
func otherCluster(one, other uint64, where string) error {
	return hint.Wrap(fmt.Errorf("the endpoints are of different clusters: %s, and %s at %s", strconv.FormatUint(one, 16), strconv.FormatUint(other, 16), where),
		"give the members of one etcd to --endpoints; others that the API server has belong to --etcd-servers-overrides")
}
