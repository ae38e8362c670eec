package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// An API server has a Lease with its identity, which it renews every 10 s, and which stays for an hour when it is gone.
const (
	identityLeases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
	identityLabel  = "apiserver.kubernetes.io/identity=kube-apiserver"
	hostnameLabel  = "kubernetes.io/hostname"
	identityDead   = 2 * time.Minute
	systemPrefix   = "kube-system/" // of their sights
)

// lookAtServers finds out which API servers there are, and whether each is ready.
func (o *Operator) lookAtServers(ctx context.Context) error {
	servers, err := kubeapi.Connect(ctx, o.cfg.Kube)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	hosts, err := o.identities(limited)
	if err != nil {
		return hint.Wrap(fmt.Errorf("listing the Leases of the API servers in kube-system: %w", err), "let this identity list leases of kube-system: docs/operate.md#privileges")
	}
	seen := &state.Servers{At: time.Now(), NotReady: notReady(limited, servers), Missing: o.missing(hosts, len(servers))}
	for _, server := range servers {
		seen.Names = append(seen.Names, server.Name())
	}
	slices.Sort(seen.Names)
	o.servers, o.world.Servers = servers, seen
	return nil
}

// identities are the hosts of the API servers that live, one for each; "" of one that does not name it.
func (o *Operator) identities(ctx context.Context) (hosts []string, err error) {
	now, listed := time.Now(), map[string]bool{}
	err = o.kube.List(ctx, identityLeases, identityLabel, func(item []byte) error {
		var lease coordinationv1.Lease
		if err := json.Unmarshal(item, &lease); err != nil {
			return fmt.Errorf("decoding the Lease of an API server: %w", err)
		}
		if len(hosts) == maxNodes {
			return fmt.Errorf("there are more than %d API servers", maxNodes)
		}
		name := systemPrefix + lease.Name
		o.mu.Lock()
		sight := o.sights.see(name, &lease, now)
		o.mu.Unlock()
		listed[name] = true
		if now.Sub(sight.At) <= identityDead { // also one that was not seen to change yet: it may live
			hosts = append(hosts, strings.ToLower(lease.Labels[hostnameLabel]))
		}
		return nil
	})
	if err == nil {
		o.mu.Lock()
		o.sights.keep(systemPrefix, listed)
		o.mu.Unlock()
	}
	return hosts, err
}

// missing says which API server is not known to us, of those that are expected.
func (o *Operator) missing(hosts []string, servers int) string {
	switch {
	case len(hosts) > servers:
		return fmt.Sprintf("%d API servers have a Lease in kube-system, and the addresses of %d are known: name each with --server", len(hosts), servers)
	case servers > len(o.world.Nodes):
		return fmt.Sprintf("there are %d API servers, and hsm-kms operate publishes from %d nodes: run it beside each", servers, len(o.world.Nodes))
	}
	for _, host := range hosts {
		if host != "" && !o.hostnames[host] {
			return fmt.Sprintf("an API server runs on %s, and no hsm-kms operate publishes from there", evidence.Printable(host))
		}
	}
	return ""
}

// notReady asks all at once, and says of the first in order what is wrong.
func notReady(ctx context.Context, servers []*kubeapi.Server) string {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() { errs[i] = server.Ready(ctx) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Sprintf("%s is not ready for KMS: %s", servers[i].Name(), words(err))
		}
	}
	return ""
}
