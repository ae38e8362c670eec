//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/test/kube"
)

// migration is the part of the documented JSON that the tests look at.
type migration struct {
	RequiredKey string `json:"requiredKey"`
	Servers     []struct {
		Server, Resource, Writes, KeyID, Error string
		OK, Skipped                            bool
	} `json:"servers"`
	Resources []struct {
		Resource       string
		Objects, Found int64
	} `json:"resources"`
	Found, Rewritten, Gone, Failed int64
	Failures                       []struct{ Key, Reason string }
	Report                         *report
	DryRun, Interrupted            bool
	Seconds                        float64
}

// migrator runs `etcd migrate` on a rig.
type migrator struct {
	*rig
	kubeconfig string
	servers    []string
	resources  string
}

const migrated = "secrets,configmaps,widgets.example.com"

func (w *rig) migrator(t *testing.T, others ...*kube.Cluster) *migrator {
	t.Helper()
	m := &migrator{rig: w, kubeconfig: filepath.Join(w.dir, "kubeconfig"), resources: migrated}
	must(t, w.cluster.WriteKubeconfig(m.kubeconfig, others...))
	for _, cluster := range append([]*kube.Cluster{w.cluster}, others...) {
		m.servers = append(m.servers, cluster.URL())
	}
	return m
}

func (m *migrator) args(more ...string) []string {
	args := []string{"etcd", "migrate", "--endpoints", m.cluster.EtcdURL(), "--kubeconfig", m.kubeconfig, "--resources", m.resources}
	for _, server := range m.servers {
		args = append(args, "--server", server)
	}
	return append(args, more...)
}

// run runs it to the end.
func (m *migrator) run(t *testing.T, code int, more ...string) (migration, outcome) {
	t.Helper()
	began := time.Now()
	o := run(t, m.plugin, slices.Concat(m.args()[1:], []string{"-o", "json"}, more)...).want(t, code)
	var out migration
	o.into(t, &out)
	t.Logf("exit code %d after %s: found %d, rewritten %d, gone %d, failed %d; %s", o.code, time.Since(began).Round(time.Millisecond),
		out.Found, out.Rewritten, out.Gone, out.Failed, strings.TrimSpace(o.errOut))
	return out, o
}

// encrypts restarts an API server with these providers, one entry for each resource: each has a KMS state of its own.
func encrypts(t *testing.T, cluster *kube.Cluster, kinds ...func(resource string) map[string]any) {
	t.Helper()
	var entries []any
	for resource := range strings.SplitSeq(migrated, ",") {
		var providers []map[string]any
		for _, kind := range kinds {
			providers = append(providers, kind(resource))
		}
		entries = append(entries, map[string]any{"resources": []string{resource}, "providers": providers})
	}
	data, err := json.Marshal(map[string]any{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": entries})
	must(t, err)
	must(t, os.WriteFile(cluster.EncryptionConfig(), data, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, cluster.RestartAPIServer(ctx))
}

// hsm is the plugin; its name must be another one in each entry.
func (w *rig) hsm(resource string) map[string]any {
	name := kube.ProviderName + "-" + strings.ReplaceAll(resource, ".", "-")
	return provider("kms", map[string]any{"apiVersion": "v2", "name": name, "endpoint": "unix://" + w.plugin.Socket()})
}

func identity(string) map[string]any { return provider("identity", map[string]any{}) }

// rotate makes the next key and waits until the plugin has it.
func (w *rig) rotate(t *testing.T) string {
	t.Helper()
	key, err := w.plugin.RotateKey(t.Context(), 0)
	must(t, err)
	deadline := time.After(patience)
	for {
		status, err := w.plugin.Status(t.Context())
		if err == nil && status.KeyID == key.KeyID {
			return key.KeyID
		}
		select {
		case <-deadline:
			t.Fatalf("the plugin never had %s: %+v, %v", key.KeyID, status, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// populate makes objects of all three resources, concurrently.
func (w *rig) populate(t *testing.T, secrets, configMaps, widgets int) {
	t.Helper()
	w.widget(t, "widget-0") // waits until it is served
	var wg sync.WaitGroup
	errs := make(chan error, secrets+configMaps+widgets)
	gate := make(chan struct{}, 8)
	do := func(f func() error) {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			errs <- f()
		})
	}
	for i := range secrets {
		name := fmt.Sprintf("secret-%d", i)
		do(func() error {
			return w.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte("canary-" + name)})
		})
	}
	for i := range configMaps {
		do(func() error {
			return w.cluster.CreateConfigMap(t.Context(), namespace, fmt.Sprintf("map-%d", i), map[string]string{"colour": "green"})
		})
	}
	for i := 1; i < widgets; i++ {
		do(func() error {
			return w.cluster.CreateWidget(t.Context(), namespace, fmt.Sprintf("widget-%d", i), "canary")
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		must(t, err)
	}
}

// stored are all objects that are migrated, by key.
func (w *rig) stored(t *testing.T) map[string]*mvccpb.KeyValue {
	t.Helper()
	client, err := w.cluster.Etcd()
	must(t, err)
	all := map[string]*mvccpb.KeyValue{}
	for _, prefix := range []string{"/registry/secrets/", "/registry/configmaps/", "/registry/example.com/widgets/"} {
		resp, err := client.Get(t.Context(), prefix, clientv3.WithPrefix())
		must(t, err)
		for _, kv := range resp.Kvs {
			all[string(kv.Key)] = kv
		}
	}
	return all
}

// revisions are those of all objects that are migrated, by key.
func (w *rig) revisions(t *testing.T) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	for key, kv := range w.stored(t) {
		all[key] = kv.ModRevision
	}
	return all
}

// noCanaries checks that nothing of ours is left in the API.
func (w *rig) noCanaries(t *testing.T) {
	t.Helper()
	for key := range w.revisions(t) {
		if strings.Contains(key, "canary") {
			t.Errorf("%s is left", key)
		}
	}
}
