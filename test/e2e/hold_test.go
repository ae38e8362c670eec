//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// outage is a control plane whose HSM goes away. Clients write and read through every node all the time, but while its API server
// restarts.
type outage struct {
	*plane
	faults []*faultp11.Module // of each node's plugin
	use    []sync.RWMutex     // of each node: read by its clients, held while its API server restarts
	old    string             // key_id

	mu      sync.Mutex
	written []string
}

// heldState is what this test reads of hold in the JSON of status.
type heldState struct {
	Healthz, KeyID string
	Hold           struct {
		Armed, Holding bool
		Why            string
		Held, Listed   int
	}
}

func (n *node) hold(t *testing.T) heldState {
	t.Helper()
	var s heldState
	text, err := n.plugin.Run(t.Context(), "status", "-o", "json")
	if len(text) == 0 {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return s
}

// waitHold waits for a state of a node's plugin.
func (n *node) waitHold(t *testing.T, what string, is func(heldState) bool) {
	t.Helper()
	eventually(t, n.name+": "+what, func() (bool, string) {
		s := n.hold(t)
		return is(s), fmt.Sprintf("%+v", s)
	})
}

// client writes through a node, and reads what it wrote through all that can be read from, until ctx ends. Nothing may fail.
func (o *outage) client(ctx context.Context, i int) error {
	for c := 0; ctx.Err() == nil; c++ {
		name := fmt.Sprintf("hold-%s-%d", o.nodes[i].name, c)
		o.use[i].RLock()
		err := o.nodes[i].cluster.CreateSecret(ctx, namespace, name, map[string][]byte{"password": []byte(canary(name))})
		o.use[i].RUnlock()
		for j := 0; j < 2 && err == nil; j++ { // the third node is for what a restarted plugin cannot do
			o.use[j].RLock()
			err = readThrough(ctx, o.nodes[j], name)
			o.use[j].RUnlock()
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s, client of %s: %w", name, o.nodes[i].name, err)
		}
		o.mu.Lock()
		if err == nil {
			o.written = append(o.written, name)
		}
		o.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

func (o *outage) names() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string{}, o.written...)
}

// restart restarts a node's API server, which must get ready and read everything.
func (o *outage) restart(t *testing.T, i int) {
	t.Helper()
	o.use[i].Lock()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	err := o.nodes[i].cluster.RestartAPIServer(ctx)
	o.use[i].Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the API server of %s is ready again after %s", o.nodes[i].name, time.Since(began).Round(100*time.Millisecond))
	checkAllReadable(t, o.names(), o.nodes[i])
}

func newOutage(t *testing.T) *outage {
	t.Helper()
	o := &outage{use: make([]sync.RWMutex, 3)}
	o.plane = newPlaneWith(t, planeOptions{
		extra: "outageHold: 1h",
		module: func(token *softhsm.Token) string {
			m := faultp11.New(t, token.Module, faultp11.Options{SoftHSMConf: token.Conf(), AllowBusyFinalize: true})
			o.faults = append(o.faults, m)
			return m.Path()
		},
		create: func(_ *plane, n *node) {
			key, err := n.plugin.CreateKey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			o.old = key.KeyID
		},
	})
	return o
}

func (o *outage) etcdArgs(args ...string) []string {
	return append(args, "--endpoints", strings.Join(o.etcd.URLs(), ","))
}

// holdMark is how long the HSM stays away, such as 10m, while the clients go on. The default is no longer than the restarts take.
const holdMark = "HSM_KMS_TEST_HOLD"

func (o *outage) stayAway(t *testing.T) {
	t.Helper()
	text := os.Getenv(holdMark)
	if text == "" {
		return
	}
	long, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", holdMark, err)
	}
	time.Sleep(long)
	for _, n := range o.nodes {
		n.waitHold(t, "still lives on its hold", func(s heldState) bool { return s.Hold.Holding && s.Healthz == "ok" })
	}
	t.Logf("%d Secrets were written after %s without the HSM", len(o.names()), long)
}

// TestHold: the HSM is away. Every API server restarts, plugins do not, and Secrets are written and read on every node all the time.
// One plugin that restarts meanwhile says that it has no hold. When the HSM is back, new DEKs are under the key itself, and a
// migration leaves nothing of the hold.
func TestHold(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	for i := range 10 {
		name := fmt.Sprintf("before-%d", i)
		writeThrough(t, o.nodes[i%3], name)
		o.written = append(o.written, name)
	}
	for _, n := range o.nodes {
		if out, err := n.plugin.Run(t.Context(), o.etcdArgs("hold", "seed")...); err != nil || !strings.Contains(string(out), "hold: armed") {
			t.Fatalf("%s: hold seed: %v: %s", n.name, err, out)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	failed := make(chan error, 2)
	for i := range 2 {
		go func() { failed <- o.client(ctx, i) }()
	}

	for _, m := range o.faults {
		m.FailAll(pkcs11.CKR_DEVICE_ERROR).UntilCleared()
	}
	for _, n := range o.nodes {
		n.waitHold(t, "lives on its hold", func(s heldState) bool { return s.Hold.Holding && s.Healthz == "ok" })
	}
	for i, n := range o.nodes {
		o.restart(t, i)
		n.waitHold(t, "names the key of the hold", func(s heldState) bool { return s.KeyID == o.old+"/hold" && s.Healthz == "ok" })
	}
	o.stayAway(t)
	o.restartPlugin(t, o.nodes[2])
	o.staysUnready(t, o.nodes[2])
	o.restart(t, 0) // what the others wrote on hold meanwhile is read too
	select {
	case err := <-failed:
		t.Fatalf("without the HSM: %v", err)
	default:
	}

	for _, m := range o.faults {
		m.Clear()
	}
	began := time.Now()
	for _, n := range o.nodes {
		n.waitHold(t, "is back at the key", func(s heldState) bool {
			return s.KeyID == o.old && s.Healthz == "ok" && !s.Hold.Holding && s.Hold.Armed
		})
	}
	t.Logf("all plugins are back %s after the HSM", time.Since(began).Round(time.Second))
	if err := o.nodes[2].cluster.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.newDEKs(t)
	stop()
	for range 2 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d Secrets were written", len(o.names()))
	checkAllReadable(t, o.names(), o.nodes...)
	o.migrate(t)
	o.trail(t)
}

// restartPlugin: without the HSM, that node's hold is over, and it says so.
func (o *outage) restartPlugin(t *testing.T, n *node) {
	t.Helper()
	if err := n.plugin.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.plugin.Serve(); err != nil {
		t.Fatal(err)
	}
	eventually(t, n.name+" says that it has no hold", func() (bool, string) {
		text, _ := n.plugin.Run(t.Context(), "status", "-o", "json") // a finding: it is not healthy
		var s heldState
		if err := json.Unmarshal(text, &s); err != nil {
			return false, fmt.Sprintf("%v: %s", err, text)
		}
		return s.Healthz != "ok" && !s.Hold.Armed && !s.Hold.Holding && s.Hold.Why != "", string(text)
	})
}

// staysUnready: an API server that restarts beside a plugin without a hold does not get ready without the HSM.
func (o *outage) staysUnready(t *testing.T, n *node) {
	t.Helper()
	if err := n.cluster.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := n.cluster.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*startTime)
	defer cancel()
	if err := n.cluster.WaitReady(ctx); err == nil {
		t.Fatalf("%s: the API server is ready, and its plugin has no hold", n.name)
	}
}

// startTime is how long an API server took at most to get ready on an armed hold.
const startTime = 6 * time.Second

// newDEKs waits until every API server writes under the key itself.
func (o *outage) newDEKs(t *testing.T) {
	t.Helper()
	began := time.Now()
	for i, n := range o.nodes {
		c := 0
		eventually(t, n.name+" writes under the key itself", func() (bool, string) {
			_, _, _ = n.cluster.Health(t.Context(), "/readyz/kms-providers") // it asks its plugin then
			name := fmt.Sprintf("after-%d-%d", i, c)
			c++
			if err := n.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte(canary(name))}); err != nil {
				return false, err.Error()
			}
			raw, err := n.cluster.EtcdGet(t.Context(), "/registry/secrets/"+namespace+"/"+name)
			if err != nil {
				return false, err.Error()
			}
			return strings.Contains(string(raw), o.old) && !strings.Contains(string(raw), o.old+"/hold"), name
		})
	}
	t.Logf("all API servers write under the key itself %s later", time.Since(began).Round(time.Second))
}

// migrate: the report finds what was written on hold, and a migration leaves nothing of it.
func (o *outage) migrate(t *testing.T) {
	t.Helper()
	n := o.nodes[0]
	report := o.etcdArgs("etcd", "report", "--require-key", "current")
	out, err := n.plugin.Run(t.Context(), report...)
	if exit, ok := errors.AsType[*plugin.ExitError](err); !ok || exit.Code != 1 || !strings.Contains(string(out), "written in an outage hold") {
		t.Errorf("the report before the migration: %v: %s", err, out)
	}
	kubeconfig := filepath.Join(shortDir(t), "kubeconfig")
	clusters := []*kube.Cluster{o.nodes[1].cluster, o.nodes[2].cluster}
	if err := n.cluster.WriteKubeconfig(kubeconfig, clusters...); err != nil {
		t.Fatal(err)
	}
	args := o.etcdArgs("etcd", "migrate", "--kubeconfig", kubeconfig)
	for _, n := range o.nodes {
		args = append(args, "--server="+n.cluster.URL())
	}
	if out, err := n.plugin.Run(t.Context(), args...); err != nil {
		t.Fatalf("etcd migrate: %v: %s", err, out)
	}
	if out, err := n.plugin.Run(t.Context(), report...); err != nil || strings.Contains(string(out), "/hold") {
		t.Errorf("the report after the migration: %v: %s", err, out)
	}
	if out, err := n.plugin.Run(t.Context(), o.etcdArgs("etcd", "verify")...); err != nil {
		t.Errorf("etcd verify: %v: %s", err, out)
	}
}

// trail: the audit trail has the hold from its beginning to its end, and the operations in it.
func (o *outage) trail(t *testing.T) {
	t.Helper()
	for _, n := range o.nodes[:2] {
		text, err := os.ReadFile(n.plugin.AuditLog())
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, want := range []string{`"hold.derived"`, `"hold.armed"`, `"hold.proof"`, `"hold.began"`, `"onHold":true`, `"hold.ended"`} {
			i := strings.Index(string(text[at:]), want)
			if i < 0 {
				t.Errorf("%s: the audit trail has no %s after byte %d", n.name, want, at)
				break
			}
			at += i
		}
	}
}
