//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"
)

// movers are the API servers of nodes whose HSM is replaced, without an API server: each asks its plugin for Status, has it
// wrap a DEK, puts that where all of them see it, and has its plugin open what any of them wrote. Unlike an API server it keeps
// no DEK in memory, so that each plugin must open everything at every moment.
type movers struct {
	nodes []*mover

	mu      sync.Mutex
	objects []moved
	reads   int
	failed  []string
	stop    func()
}

// moved is a DEK as etcd has it.
type moved struct {
	keyID      string
	ciphertext []byte
	dek        string
	by         string
}

// retryFor is how long a client of an API server goes on when its plugin is restarted or has only just started: the answer is that
// the HSM is unavailable, or there is none. Any other answer is a failure at once.
const retryFor = 30 * time.Second

// startMovers begins to write and read through every node; check ends it.
func startMovers(t *testing.T, nodes []*mover) *movers {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := &movers{nodes: nodes}
	var wg sync.WaitGroup
	for _, n := range nodes {
		conn, err := grpc.NewClient("unix://"+n.plugin.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		client := kmsapi.NewKeyManagementServiceClient(conn)
		wg.Go(func() { every(ctx, 50*time.Millisecond, func(int) { m.write(ctx, n, client) }) })
		wg.Go(func() { every(ctx, 20*time.Millisecond, func(i int) { m.read(ctx, n, client, i) }) })
	}
	m.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(m.stop)
	return m
}

// patiently calls until an answer is another than that nobody, or no HSM, can be asked just now.
func patiently(ctx context.Context, call func(context.Context) error) error {
	deadline := time.Now().Add(retryFor)
	for {
		once, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second) // kube-apiserver's own
		err := call(once)
		cancel()
		passing := status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded
		if !passing || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond) // between two tries of a client, not a wait for something
	}
}

// write is one write as an API server makes it after each Status: it takes no answer under another key_id than that named.
func (m *movers) write(ctx context.Context, n *mover, client kmsapi.KeyManagementServiceClient) {
	dek := make([]byte, dekSeed)
	_, _ = rand.Read(dek)
	err := patiently(ctx, func(ctx context.Context) error {
		is, err := client.Status(ctx, &kmsapi.StatusRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		enc, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: append([]byte{}, dek...), Uid: "mover"}, grpc.WaitForReady(true))
		switch {
		case err != nil:
			return err
		case enc.KeyId != is.KeyId: // the plugin was restarted in between: an API server asks again at its next Status
			return status.Error(codes.Unavailable, "another key_id than that of Status")
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.objects = append(m.objects, moved{enc.KeyId, enc.Ciphertext, string(dek), n.name})
		return nil
	})
	m.note(ctx, n, "writing", err)
}

// read opens, in turn, what was written last and anything.
func (m *movers) read(ctx context.Context, n *mover, client kmsapi.KeyManagementServiceClient, i int) {
	m.mu.Lock()
	count := len(m.objects)
	var o moved
	if count > 0 {
		o = m.objects[count-1]
		if i%2 == 1 {
			o = m.objects[mathrand.IntN(count)] //nolint:gosec // no secret
		}
	}
	m.mu.Unlock()
	if count == 0 {
		return
	}
	err := patiently(ctx, func(ctx context.Context) error { return o.open(ctx, client) })
	m.note(ctx, n, "reading what "+o.by+" wrote under "+o.keyID, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
}

func (o moved) open(ctx context.Context, client kmsapi.KeyManagementServiceClient) error {
	dec, err := client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: o.ciphertext, KeyId: o.keyID, Uid: "mover"}, grpc.WaitForReady(true))
	if err == nil && string(dec.Plaintext) != o.dek {
		return status.Error(codes.DataLoss, "another DEK came back")
	}
	return err
}

func (m *movers) note(ctx context.Context, n *mover, what string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = append(m.failed, fmt.Sprintf("%s: %s: %v", n.name, what, err))
}

// waitWritesUnder waits until each node has written something more under a key of the ring.
func (m *movers) waitWritesUnder(t *testing.T, ring string, nodes ...*mover) {
	t.Helper()
	m.mu.Lock()
	from := len(m.objects)
	m.mu.Unlock()
	for _, n := range nodes {
		eventually(t, n.name+" writes under "+ring, func() (bool, string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			last := "nothing"
			for _, o := range m.objects[from:] {
				if o.by == n.name {
					if last = o.keyID; strings.HasPrefix(o.keyID, ring+"/") {
						return true, ""
					}
				}
			}
			return false, last
		})
	}
}

// migrate has each object that is not under the ring read and written again through a node, as etcd migrate has the API
// servers do, and ends after most of them.
func (m *movers) migrate(t *testing.T, n *mover, ring string, most int) (left int) {
	t.Helper()
	client := n.client(t)
	m.mu.Lock()
	objects := append([]moved{}, m.objects...)
	m.mu.Unlock()
	for i, o := range objects {
		if strings.HasPrefix(o.keyID, ring+"/") {
			continue
		}
		if most--; most < 0 {
			left++
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := patiently(ctx, func(ctx context.Context) error { return o.open(ctx, client) }); err != nil {
			t.Errorf("migrating what is under %s: %v", o.keyID, err)
		}
		enc, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: []byte(o.dek), Uid: "mover"})
		cancel()
		if err != nil || !strings.HasPrefix(enc.GetKeyId(), ring+"/") {
			t.Errorf("migrating: %v, %v", enc.GetKeyId(), err)
			continue
		}
		m.mu.Lock()
		m.objects[i] = moved{enc.KeyId, enc.Ciphertext, o.dek, "migrate"}
		m.mu.Unlock()
	}
	return left
}

// under counts the objects by ring.
func (m *movers) under() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := map[string]int{}
	for _, o := range m.objects {
		ring, _, _ := strings.Cut(o.keyID, "/")
		count[ring]++
	}
	return count
}

// check ends the traffic and tells what failed; then every node opens everything once more.
func (m *movers) check(t *testing.T) {
	t.Helper()
	m.stop()
	t.Logf("%d objects, %d reads, %v", len(m.objects), m.reads, m.under())
	for i, failure := range m.failed {
		if i == 10 {
			t.Errorf("and %d more", len(m.failed)-i)
			break
		}
		t.Error(failure)
	}
	for _, n := range m.nodes {
		client := n.client(t)
		for _, o := range m.objects {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if err := o.open(ctx, client); err != nil {
				t.Errorf("%s, in the end: what %s wrote under %s: %v", n.name, o.by, o.keyID, err)
			}
			cancel()
		}
	}
}
