//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// storedAt is the etcd key of the i-th Secret.
func storedAt(i int) string { return fmt.Sprintf("/registry/secrets/e2e/%06d", i) }

// TestCompaction makes reports while etcd is compacted every 15 to 300 ms. In every revision at least one Secret is under
// the old key, and that one moves backwards through the keys, against the reading. HSM_KMS_REPORTS says how many reports
// (8), HSM_KMS_SECRETS over how many Secrets (40,000).
func TestCompaction(t *testing.T) {
	t.Parallel()
	number := func(name string, otherwise int) int {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.Atoi(text)
			must(t, err)
			return n
		}
		return otherwise
	}
	reports, secrets := number("HSM_KMS_REPORTS", 8), number("HSM_KMS_SECRETS", 40_000)
	bin, err := plugin.FindPrograms()
	must(t, err)
	members, err := kube.NewMembers(bin.Kube, t.TempDir(), 1)
	must(t, err)
	t.Cleanup(func() { _ = members.Stop() })
	must(t, members.Launch(0))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, members.WaitReady(ctx))
	client, err := clientv3.New(clientv3.Config{Endpoints: members.URLs(), Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	disturb(t, client, secrets, fill(ctx, t, client, secrets))
	var longest time.Duration
	followed, changed := 0, int64(0)
	for i := range reports {
		began := time.Now()
		out, err := exec.CommandContext(t.Context(), bin.HSMKMS, "etcd", "report", "-o", "json", "--endpoints", members.URLs()[0]).Output()
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as exec returns it
			t.Errorf("report %d: %v: %s", i, err, exit.Stderr)
			continue
		}
		must(t, err)
		longest = max(longest, time.Since(began))
		var r struct {
			Objects   int
			Resources []struct {
				Keys []struct {
					KeyID   string
					Objects int
				}
			}
			Sources []struct{ From, Changed int64 }
		}
		outcome{out: string(out)}.into(t, &r)
		old := 0
		for _, key := range r.Resources[0].Keys {
			if key.KeyID == "ring/old" {
				old = key.Objects
			}
		}
		if r.Objects != secrets || old < 1 || old > 2 {
			t.Errorf("report %d: %d objects, %d of them under the old key; want %d, and one or two", i, r.Objects, old, secrets)
		}
		if r.Sources[0].From > 0 {
			followed++
			changed = max(changed, r.Sources[0].Changed)
		}
	}
	t.Logf("%d reports, %d of them followed etcd, over at most %d changes; the longest took %s", reports, followed, changed, longest.Round(time.Millisecond))
	if followed == 0 {
		t.Error("no report was disturbed by a compaction")
	}
}

// fill writes Secrets, the last of which is under the old key, and returns both kinds of values.
func fill(ctx context.Context, t *testing.T, client *clientv3.Client, secrets int) (values [2]string) {
	t.Helper()
	for i, keyID := range []string{"ring/old", "ring/new"} {
		dek := &kubestore.DEK{Provider: "hsm-kms", KeyID: keyID, Wrapped: []byte("wrapped"), Plain: make([]byte, 32)}
		value, err := dek.Value(storedAt(0), make([]byte, 500))
		must(t, err)
		values[i] = string(value)
	}
	for i := 0; i < secrets; i += 100 {
		var puts []clientv3.Op
		for j := i; j < min(i+100, secrets); j++ {
			puts = append(puts, clientv3.OpPut(storedAt(j), values[1]))
		}
		_, err := client.Txn(ctx).Then(puts...).Commit()
		must(t, err)
	}
	_, err := client.Put(ctx, storedAt(secrets-1), values[0])
	must(t, err)
	return values
}

// disturb moves the object under the old key and compacts, until the test ends.
func disturb(t *testing.T, client *clientv3.Client, secrets int, values [2]string) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{}, 2)
	t.Cleanup(func() {
		cancel()
		<-ended
		<-ended
	})
	go func() {
		defer func() { ended <- struct{}{} }()
		for at := secrets - 1; ctx.Err() == nil; {
			next := at - 1 - rand.IntN(100) //nolint:gosec // no secret
			if next < 0 {
				next += secrets
			}
			// First there, then no longer here: one of them is under the old key at every revision.
			_, err := client.Put(ctx, storedAt(next), values[0])
			if err == nil {
				_, err = client.Put(ctx, storedAt(at), values[1])
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("moving: %v", err)
				return
			}
			at = next
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(15*time.Millisecond + rand.N(285*time.Millisecond)): //nolint:gosec // no secret
			}
			resp, err := client.Get(ctx, "nothing")
			if err == nil {
				_, err = client.Compact(ctx, resp.Header.Revision)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("compacting: %v", err)
				return
			}
		}
	}()
}
