//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
)

const (
	lifeSecrets = 1000
	lifeWidgets = 20
)

// life is the whole life of a key on three nodes, by the runbook's own commands.
type life struct {
	*plane
	*operator
	old, new string // key_ids
	secrets  []string
}

// A key's whole life: made, written under, followed by another while clients write, migrated from, rehearsed to be gone,
// destroyed; an older snapshot is refused then, and a newer one restored. The command of every step is killed once in its
// middle, a plugin too, and what comes after goes on from there.
func TestWholeLife(t *testing.T) {
	t.Parallel()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcdctl", "etcdutl"} {
		if _, err := os.Stat(bin.Kube.Path(name)); err != nil {
			t.Skipf("the runbook uses %s, and these programs come without it", name)
		}
	}
	l := &life{}
	l.plane = newPlaneWith(t, planeOptions{resources: []string{"secrets", kube.Widgets}, create: func(p *plane, n *node) {
		l.operator = newOperator(t, p, n, readRunbook(t))
		l.create(t)
	}})
	l.knows(t, l.nodes)
	began := time.Now()
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"fill", l.fill}, {"rotate and migrate", l.change}, {"report", l.report}, {"rehearse", l.rehearse},
		{"retire", l.retire}, {"restore", l.restore},
	} {
		step.do(t)
		t.Logf("%s: done after %s", step.name, time.Since(began).Round(time.Second))
	}
}

// create: killed before the token has made a key, there is none.
func (l *life) create(t *testing.T) {
	t.Helper()
	release := l.faults.Hang("C_GenerateKey")
	l.killed(t, "hsm-kms keys create", nil, l.hangs("C_GenerateKey"))
	release()
	l.do(t, "hsm-kms keys list", nil, "The ring is empty")
	l.do(t, "hsm-kms keys create", nil, "Made ")
	for keyID := range l.list(t) {
		l.old = keyID
	}
}

// fill writes Secrets and custom resources under the first key, and saves a snapshot that needs it forever.
func (l *life) fill(t *testing.T) {
	t.Helper()
	for i := range lifeSecrets {
		l.secrets = append(l.secrets, fmt.Sprintf("life-%04d", i))
	}
	work := make(chan string)
	var workers sync.WaitGroup
	for i := range 12 {
		n := l.nodes[i%3]
		workers.Go(func() {
			for name := range work {
				if err := n.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte(canary(name))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, name := range l.secrets {
		work <- name
	}
	close(work)
	workers.Wait()
	cluster := l.nodes[0].cluster
	if err := cluster.DefineWidgets(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range lifeWidgets {
		name := fmt.Sprintf("life-%02d", i)
		eventually(t, "making the custom resource "+name, func() (bool, string) {
			err := cluster.CreateWidget(t.Context(), namespace, name, canary(name))
			return err == nil, fmt.Sprint(err)
		})
	}
	l.do(t, "etcdctl snapshot save before.db", l.etcdctl())
	if n := l.under(t, l.old); n != lifeSecrets {
		t.Errorf("%d Secrets are under the first key, want %d", n, lifeSecrets)
	}
}

// etcdctl is where it finds etcd: a snapshot is of one member.
func (l *life) etcdctl() []string { return []string{"ETCDCTL_ENDPOINTS=" + l.etcd.URLs()[0]} }

// under counts those of the first Secrets that are under a key.
func (l *life) under(t *testing.T, keyID string) int {
	t.Helper()
	client, err := l.nodes[0].cluster.Etcd()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(t.Context(), "/registry/secrets/"+namespace+"/life-", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, kv := range resp.Kvs {
		if strings.Contains(string(kv.Value), keyID) {
			count++
		}
	}
	return count
}

// change rotates and migrates while clients write and read through every API server, and none of them sees a failure.
func (l *life) change(t *testing.T) {
	t.Helper()
	tr := startTraffic(t, l.nodes)
	tr.waitMore(t, 10)
	l.rotate(t)
	l.migrate(t)
	tr.check(t)
	l.secrets = append(l.secrets, tr.all()...)
}

// rotate: killed after the token has made the key, and before anybody was told, the rotation is under way: the runbook
// says to look before trying again. A plugin that is killed meanwhile makes the key current like the others.
func (l *life) rotate(t *testing.T) {
	t.Helper()
	known := l.list(t)
	l.faults.HangCallAfter("C_GenerateKey").After(1).Once() // the first call makes the session key of the trial
	l.killed(t, l.book.next(t, "Make the next version"), in(10*time.Second), l.hangs("C_GenerateKey"))
	l.faults.ClearFunction("C_GenerateKey")
	key := l.added(t, known)
	l.new = key.KeyID
	if key.State != "pending" {
		t.Logf("this machine is slow: the key is %s already", key.State)
	}
	second := l.nodes[1]
	second.plugin.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := second.plugin.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.nodes {
		n.waitCurrent(t, l.new)
	}
}

// migrate: killed after a part, the same command does the rest.
func (l *life) migrate(t *testing.T) {
	t.Helper()
	const heading = "Migrate"
	l.do(t, l.book.next(t, heading), nil)
	if n := l.under(t, l.new); n != 0 {
		t.Errorf("a dry run rewrote %d Secrets", n)
	}
	// Asking for an API server's health makes it ask its plugin, at most every 20 s; by itself it asks once a minute.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go every(ctx, time.Second, func(int) {
		for _, n := range l.nodes {
			_, _, _ = n.cluster.Health(ctx, "/readyz/kms-providers") // for what it causes only
		}
	})
	migrate := l.book.next(t, heading)
	l.killed(t, migrate, nil, func(ctx context.Context) error {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for l.under(t, l.new) < lifeSecrets/10 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
		return nil
	})
	if n := l.under(t, l.old); n == 0 {
		t.Error("nothing was left to do after the kill")
	} else {
		t.Logf("%d Secrets are left", n)
	}
	l.do(t, migrate, nil)
	if n := l.under(t, l.new); n != lifeSecrets {
		t.Errorf("%d Secrets are under the new key, want %d", n, lifeSecrets)
	}
}

// report: killed while it reads, its file is no evidence.
func (l *life) report(t *testing.T) {
	t.Helper()
	url, entered := hole(t)
	report := l.book.next(t, letGo)
	l.killed(t, report, []string{"HOLE=" + url}, entered)
	if _, err := os.Stat(filepath.Join(l.folder, "report.json")); err != nil {
		t.Error(err)
	}
	l.refused(t, `hsm-kms keys retire "$OLD" --evidence report.json`, l.variables(), "not evidence", "etcd report -o json")
	l.do(t, report, nil)
	l.do(t, `hsm-kms etcd report --require-key current --resources secrets,`+kube.Widgets, nil)
}

// letGo is the runbook's last section.
const letGo = "Let the old key go"

func (l *life) variables() []string { return append(l.etcdctl(), "OLD="+l.old, "NEW="+l.new) }
