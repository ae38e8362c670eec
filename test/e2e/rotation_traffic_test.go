//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// How often each API server is written to and read from while a test goes on: enough to meet every moment of a
// changeover, and little enough for two processors with ten processes on them.
const (
	writeEvery = 200 * time.Millisecond
	readEvery  = 50 * time.Millisecond
)

// traffic writes Secrets through every API server and reads them back through every one, until it is stopped. Whatever
// fails is kept.
type traffic struct {
	nodes   []*node
	began   int64 // it is in the names: there may be traffic before and after
	mu      sync.Mutex
	written []string          // names of all Secrets, in order
	last    map[string]string // the last Secret that was written through a node
	reads   int
	failed  []string
	stop    func()
}

// startTraffic begins; stop ends it and may be called twice.
func startTraffic(t *testing.T, nodes []*node) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traffic{nodes: nodes, began: time.Now().UnixMilli(), last: map[string]string{}}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { every(ctx, writeEvery, func(i int) { tr.write(ctx, n, i) }) })
		wg.Go(func() { every(ctx, readEvery, func(i int) { tr.read(ctx, n, i) }) })
	}
	tr.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(tr.stop)
	return tr
}

// every calls do at each tick until ctx ends.
func every(ctx context.Context, interval time.Duration, do func(i int)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do(i)
		}
	}
}

func (tr *traffic) write(ctx context.Context, n *node, i int) {
	name := fmt.Sprintf("%s-%d-%05d", n.name, tr.began, i)
	// A write that is under way when the traffic stops goes on: cut off, it may have been made or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := n.cluster.CreateSecret(ctx, namespace, name, map[string][]byte{"password": []byte(canary(name))})
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err != nil {
		tr.failed = append(tr.failed, fmt.Sprintf("%s writing %s through %s: %v", time.Now().UTC().Format(time.StampMilli), name, n.name, err))
		return
	}
	tr.written = append(tr.written, name)
	tr.last[n.name] = name
}

// read reads, in turn, the Secret that was written last through any node, which may be under a key that this one has just
// learnt of, and one of all.
func (tr *traffic) read(ctx context.Context, n *node, i int) {
	tr.mu.Lock()
	var name string
	if count := len(tr.written); count > 0 {
		name = tr.written[count-1]
		if i%2 == 1 {
			name = tr.written[rand.IntN(count)] //nolint:gosec // no secret
		}
	}
	tr.mu.Unlock()
	if name == "" {
		return
	}
	err := readThrough(ctx, n, name)
	if ctx.Err() != nil {
		return
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.reads++
	if err != nil {
		tr.failed = append(tr.failed, fmt.Sprintf("%s reading %s through %s: %v", time.Now().UTC().Format(time.StampMilli), name, n.name, err))
	}
}

func readThrough(ctx context.Context, n *node, name string) error {
	secret, err := n.cluster.GetSecret(ctx, namespace, name)
	if err != nil {
		return err
	}
	if got := string(secret.Data["password"]); got != canary(name) {
		return fmt.Errorf("it holds %q, want %q", got, canary(name))
	}
	return nil
}

// all are the names of all Secrets written so far.
func (tr *traffic) all() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return append([]string(nil), tr.written...)
}

// waitMore waits until n more Secrets have been written.
func (tr *traffic) waitMore(t *testing.T, n int) {
	t.Helper()
	from := len(tr.all())
	eventually(t, fmt.Sprintf("%d more Secrets", n), func() (bool, string) {
		written := len(tr.all()) - from
		return written >= n, fmt.Sprint(written)
	})
}

// check ends the traffic and tells what failed.
func (tr *traffic) check(t *testing.T) {
	t.Helper()
	tr.stop()
	t.Logf("%d Secrets written, %d reads", len(tr.written), tr.reads)
	for i, failure := range tr.failed {
		if i == 10 {
			t.Errorf("and %d more", len(tr.failed)-i)
			break
		}
		t.Error(failure)
	}
}

// waitWritesUnder waits until what each of the nodes writes is under keyID. Asking for an API server's health makes it
// ask its plugin, at most every 20 s; by itself it asks once a minute.
func (tr *traffic) waitWritesUnder(t *testing.T, keyID string, nodes ...*node) {
	t.Helper()
	began := time.Now()
	for _, n := range nodes {
		eventually(t, n.name+" writes under "+keyID, func() (bool, string) {
			for _, other := range nodes {
				_, _, _ = other.cluster.Health(t.Context(), "/readyz/kms-providers") // for what it causes only
			}
			tr.mu.Lock()
			name := tr.last[n.name]
			tr.mu.Unlock()
			raw, err := n.cluster.EtcdGet(t.Context(), "/registry/secrets/"+namespace+"/"+name)
			return err == nil && strings.Contains(string(raw), keyID), fmt.Sprintf("%s: %v", name, err)
		})
		t.Logf("%s writes under the new key after %s", n.name, time.Since(began).Round(100*time.Millisecond))
	}
}

// checkAllReadable reads every Secret through each of the nodes.
func checkAllReadable(t *testing.T, names []string, nodes ...*node) {
	t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			failed := 0
			for _, name := range names {
				if err := readThrough(t.Context(), n, name); err != nil {
					if failed++; failed <= 3 {
						t.Errorf("reading %s through %s: %v", name, n.name, err)
					}
				}
			}
			if failed > 3 {
				t.Errorf("%s: %d of %d Secrets cannot be read", n.name, failed, len(names))
			}
		})
	}
	wg.Wait()
}

// countByKey counts the Secrets in etcd by key_id and node that wrote them; one in plain text, or under none of the
// keys, fails the test.
func (p *plane) countByKey(t *testing.T, keyIDs ...string) map[string]map[string]int {
	t.Helper()
	client, err := p.nodes[0].cluster.Etcd()
	if err != nil {
		t.Fatal(err)
	}
	prefix := "/registry/secrets/" + namespace + "/"
	resp, err := client.Get(t.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]map[string]int{}
	for _, kv := range resp.Kvs {
		name, value := strings.TrimPrefix(string(kv.Key), prefix), string(kv.Value)
		if !strings.HasPrefix(value, "k8s:enc:kms:v2:") || strings.Contains(value, canary(name)) {
			t.Errorf("%s is not encrypted", name)
		}
		under := "none of the keys"
		for _, id := range keyIDs {
			if strings.Contains(value, id) {
				under = id
			}
		}
		if counts[under] == nil {
			counts[under] = map[string]int{}
		}
		counts[under][strings.SplitN(name, "-", 2)[0]]++
	}
	if n := counts["none of the keys"]; n != nil {
		t.Errorf("Secrets under an unknown key: %v", n)
	}
	return counts
}

// waitHealthy waits until the API server is ready.
func (n *node) waitHealthy(t *testing.T) {
	t.Helper()
	eventually(t, n.name+" is ready", func() (bool, string) {
		code, text, err := n.cluster.Health(t.Context(), "/readyz")
		return err == nil && code == http.StatusOK, fmt.Sprintf("%d %s %v", code, text, err)
	})
}
