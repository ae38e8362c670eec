//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// rehearse: with the old key refused on every node, and nothing in the API servers' memory, everything is readable.
func (l *life) rehearse(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	refuse := "refuseKeys: [" + l.old + "]\n"
	appendTo(t, l.config, refuse)
	for _, n := range l.nodes {
		appendTo(t, n.plugin.Config(), refuse)
		if err := n.plugin.Stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.plugin.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if err := n.cluster.RestartAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
	}
	l.wholeLists(t)
	l.do(t, l.book.next(t, "Rehearse"), nil, "hsm_kms_refused_key_requests_total 0")
	for _, n := range l.nodes {
		n.waitSample(t, "hsm_kms_refused_key_requests_total", "0")
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteString(text)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

// wholeLists lists everything through every API server: one object that cannot be opened would fail the list.
func (l *life) wholeLists(t *testing.T) {
	t.Helper()
	for _, n := range l.nodes {
		if count, err := n.countSecrets(t); err != nil || count != len(l.secrets) {
			t.Errorf("%s lists %d Secrets, %v; want %d", n.name, count, err, len(l.secrets))
		}
		// An API server that was just started is ready before it serves custom resources.
		eventually(t, n.name+" lists the custom resources", func() (bool, string) {
			var widgets struct {
				Items []any `json:"items"`
			}
			err := n.cluster.Do(t.Context(), http.MethodGet, "/apis/example.com/v1/namespaces/"+namespace+"/widgets", nil, &widgets)
			return err == nil && len(widgets.Items) == lifeWidgets, fmt.Sprint(len(widgets.Items), err)
		})
	}
}

// retire: refused while a snapshot needs the key, in its past too. Killed inside C_DestroyObject, its worker makes that one
// call to its end, and the same command finds the key gone and completes the record.
func (l *life) retire(t *testing.T) {
	t.Helper()
	dryRun, retire := l.book.next(t, letGo), l.book.next(t, letGo)
	l.refused(t, `hsm-kms keys retire "$OLD" --evidence report.json --snapshot before.db`, l.variables(),
		fmt.Sprintf("the snapshot before.db: %d objects under %s", lifeSecrets+lifeWidgets, l.old))
	l.refused(t, dryRun, l.variables(), "the snapshot backup.db: ", "past revisions under "+l.old)
	client, err := l.nodes[0].cluster.Etcd()
	if err != nil {
		t.Fatal(err)
	}
	now, err := client.Get(t.Context(), "compact_rev_key")
	if err != nil {
		t.Fatal(err)
	}
	l.do(t, fmt.Sprintf("etcdctl compact %d --physical", now.Header.GetRevision()), l.etcdctl(), "compacted")
	l.do(t, dryRun, l.variables(), "rehearsed: ", "Nothing was destroyed: a dry run.")

	release := l.faults.Hang("C_DestroyObject")
	l.killed(t, retire, l.variables(), l.hangs("C_DestroyObject"))
	release()
	eventually(t, "the key is destroyed", func() (bool, string) {
		keys := l.list(t)
		return len(keys) == 1 && keys[l.new].KeyID != "", fmt.Sprintf("the ring is %+v", keys)
	})
	l.do(t, retire, l.variables(), l.old+" is on no token. Its destruction was begun before, and is complete.")
	for _, n := range l.nodes { // the running plugins know within refreshInterval, and go on
		n.waitSample(t, `hsm_kms_ring_versions{state="refused"}`, "0")
		n.waitCurrent(t, l.new)
		writeThrough(t, n, "after-"+n.name)
		l.secrets = append(l.secrets, "after-"+n.name)
	}
	l.wholeLists(t)
}

// restore: the older snapshot is refused and says which key it wants; the newer one is verified, killed in its middle
// first, and an etcd that is restored from it gives a new API server its Secrets.
func (l *life) restore(t *testing.T) {
	t.Helper()
	l.refused(t, "hsm-kms etcd verify --snapshot before.db", nil, "unknown key_id: "+l.old, "keys retire destroyed it at ",
		fmt.Sprintf("%s objects could not be opened", "1,020"))
	verify := l.book.next(t, letGo)
	l.faults.ResetCounters()
	l.do(t, "hsm-kms keys list", nil) // connects and proves the key, and no more
	proofs := l.faults.Calls("C_DecryptInit")
	l.faults.ResetCounters()
	l.faults.Delay("C_DecryptInit", 200*time.Millisecond)
	l.killed(t, verify, nil, func(ctx context.Context) error { return l.faults.WaitCalls(ctx, "C_DecryptInit", proofs+1) })
	l.faults.Clear()
	l.do(t, verify, nil, "0 could not be opened, 0 undecodable", "ok         yes")

	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	etcd, err := kube.NewMembers(bin.Kube, filepath.Join(l.folder, "restored"), 1)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := kube.New(kube.Options{
		Bin: bin.Kube, Dir: filepath.Join(l.folder, "restored-kube"), Socket: l.nodes[2].plugin.Socket(), Etcd: etcd, Resources: []string{"secrets", kube.Widgets},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cluster.Stop(), etcd.Stop()); err != nil {
			t.Error(err)
		}
	})
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return etcd.Restore(ctx, filepath.Join(l.folder, "backup.db")) },
		func(context.Context) error { return etcd.Launch(0) }, etcd.WaitReady, cluster.StartAPIServer, cluster.WaitReady,
	} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{l.secrets[0], l.secrets[lifeSecrets-1], l.secrets[lifeSecrets]} {
		secret, err := cluster.GetSecret(ctx, namespace, name)
		if err != nil || string(secret.Data["password"]) != canary(name) {
			t.Errorf("restored: %s holds %q, %v", name, secret.Data["password"], err)
		}
	}
	eventually(t, "the restored API server reads the custom resource", func() (bool, string) {
		spec, err := cluster.GetWidget(ctx, namespace, "life-00")
		return err == nil && spec == canary("life-00"), fmt.Sprint(spec, err)
	})
}
