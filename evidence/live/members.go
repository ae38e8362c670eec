package live

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// askTimeout bounds what an endpoint is asked about itself: one that is down is done without.
const askTimeout = 3 * time.Second

// asker asks one endpoint about itself.
type asker func(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error)

// sameCluster asks every endpoint that answers which cluster it belongs to. The client takes them in turn: of two
// clusters it would read a part of each, or one of them alone, and nobody could tell from what it read.
func (e *Etcd) sameCluster(ctx context.Context) error {
	if e.ask == nil || len(e.addresses) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	clusters := make([]uint64, len(e.addresses)) // 0: no answer
	var wg sync.WaitGroup
	for i, address := range e.addresses {
		wg.Go(func() {
			if status, err := e.ask(ctx, address); err == nil {
				clusters[i] = status.Header.GetClusterId()
			}
		})
	}
	wg.Wait()
	first := slices.IndexFunc(clusters, func(id uint64) bool { return id != 0 })
	for i, id := range clusters {
		if id != 0 && id != clusters[first] {
			return otherCluster(clusters[first], id, e.addresses[i])
		}
	}
	return nil
}

// otherCluster is about endpoints that are not members of one etcd.
func otherCluster(one, other uint64, where string) error {
	return hint.Wrap(fmt.Errorf("the endpoints are of different clusters: %s, and %s at %s", strconv.FormatUint(one, 16), strconv.FormatUint(other, 16), where),
		"give the members of one etcd to --endpoints; others that the API server has belong to --etcd-servers-overrides")
}
