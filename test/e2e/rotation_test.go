//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// A rotation twice in a row, with nothing rewritten in between, under continuous writes and reads through three API
// servers; then everything dies at once and comes back in random order.
func TestRotationOnThreeNodes(t *testing.T) {
	t.Parallel()
	p := newPlane(t, false)
	first := p.nodes[0].plugin
	keys, err := first.Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys = %+v, %v", keys, err)
	}
	ids := []string{keys[0].KeyID}
	tr := startTraffic(t, p.nodes)
	tr.waitWritesUnder(t, ids[0], p.nodes...)
	for i := range 2 {
		key := p.rotate(t, p.nodes[i]) // from any node: the token is the only state
		ids = append(ids, key.KeyID)
		tr.waitWritesUnder(t, key.KeyID, p.nodes...)
	}
	tr.waitMore(t, 30)
	tr.check(t)
	names := tr.all()
	checkAllReadable(t, names, p.nodes...)
	counts := p.countByKey(t, ids...)
	for _, id := range ids {
		t.Logf("%s: %v", id, counts[id])
		for _, n := range p.nodes {
			if counts[id][n.name] == 0 {
				t.Errorf("%s wrote nothing under %s", n.name, id)
			}
		}
	}
	for _, n := range p.nodes {
		checkNoAlarm(t, n.plugin, loginCollided)
	}

	order := rand.Perm(9) //nolint:gosec // no secret
	again := rand.Perm(9) //nolint:gosec // no secret
	t.Logf("SIGKILL in the order %v, starting again in the order %v (0-2 etcd, 3-5 plugins, 6-8 API servers)", order, again)
	p.kill(order)
	p.start(t, again)
	checkAllReadable(t, names, p.nodes...)
	for _, n := range p.nodes {
		name := "after-" + n.name
		if err := n.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte(canary(name))}); err != nil {
			t.Error(err)
		}
		checkAllReadable(t, []string{name}, p.nodes...)
		checkNoAlarm(t, n.plugin, loginCollided)
	}
}

// rotate makes the next version from a node and checks that every node makes it current, and none before its time. All
// clocks are this machine's; what is left is how soon each notices.
func (p *plane) rotate(t *testing.T, from *node) plugin.Key {
	t.Helper()
	key, err := from.plugin.RotateKey(t.Context(), 4*time.Second)
	if err != nil || key.State != "pending" || key.Activates == nil {
		t.Fatalf("keys rotate: %+v, %v", key, err)
	}
	for _, n := range p.nodes {
		n.waitSample(t, "hsm_kms_ring_pending_ready", "1")
	}
	if now := time.Now(); now.After(*key.Activates) {
		t.Logf("this machine is slow: the nodes were seen ready only %s after the activation", now.Sub(*key.Activates))
	}
	for _, n := range p.nodes {
		n.waitCurrent(t, key.KeyID)
		if now := time.Now(); now.Before(*key.Activates) {
			t.Errorf("%s made %s current %s before its time", n.name, key.KeyID, key.Activates.Sub(now))
		} else {
			t.Logf("%s has the new key current %s after its time", n.name, now.Sub(*key.Activates).Round(time.Millisecond))
		}
	}
	return key
}

// The nodes' tokens are copies of each other, and the new version reaches the third late: its reads of what the others
// write fail until then, it says which key_id it lacks and its metrics say that something is wrong. Nothing is lost.
func TestRotationReachesOneTokenLate(t *testing.T) {
	t.Parallel()
	p := newPlane(t, true)
	early, late := p.nodes[:2], p.nodes[2]
	keys, err := late.plugin.Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys = %+v, %v", keys, err)
	}
	writeThrough(t, p.nodes[0], "before")

	key, err := p.nodes[0].plugin.RotateKey(t.Context(), 4*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.nodes[0].token.CopyNew(p.nodes[1].token); err != nil {
		t.Fatal(err)
	}
	tr := startTraffic(t, early)
	for _, n := range early {
		n.waitCurrent(t, key.KeyID)
	}
	tr.waitWritesUnder(t, key.KeyID, early...)
	tr.check(t)
	names := tr.all()
	new := names[len(names)-1]

	err = readThrough(t.Context(), late, new)
	if err == nil || !strings.Contains(err.Error(), "unknown key_id") || !strings.Contains(err.Error(), key.KeyID) {
		t.Errorf("reading %s through %s: %v; want an error that names the key_id it lacks", new, late.name, err)
	}
	checkLackIsTold(t, late, key.KeyID, keys[0].KeyID)
	if n, err := late.countSecrets(t); err == nil {
		t.Errorf("listing through %s gives %d Secrets; a list with one that cannot be opened is to fail as a whole", late.name, n)
	} else {
		t.Logf("listing through %s: %v", late.name, err)
	}
	for _, n := range p.nodes { // what is not under the new key is read and written as ever, on all nodes
		checkAllReadable(t, []string{"before"}, n)
	}
	writeThrough(t, late, "meanwhile")
	checkAllReadable(t, []string{"meanwhile"}, p.nodes...)

	if err := p.nodes[0].token.CopyNew(late.token); err != nil {
		t.Fatal(err)
	}
	late.waitCurrent(t, key.KeyID)
	late.waitHealthy(t)
	checkAllReadable(t, append(names, "before", "meanwhile"), p.nodes...)
	eventually(t, "lists through "+late.name+" are whole again", func() (bool, string) {
		n, err := late.countSecrets(t)
		return err == nil && n == len(names)+2, fmt.Sprintf("%d of %d, %v", n, len(names)+2, err)
	})
	for _, n := range early {
		checkNoAlarm(t, n.plugin, loginCollided)
	}
	checkNoAlarm(t, late.plugin, func(l logLine) bool { return strings.Contains(l.text, key.KeyID) && l.Hint != "" })
}

// loginCollided tells what SoftHSM does when several processes log in at one instant: each login writes to the token's
// file, and another may find it broken or without a PIN. The plugin tries again a second later; an API server that asks
// before that is told that nothing is known yet.
func loginCollided(l logLine) bool {
	return strings.Contains(l.Error, "C_Login: CKR_GENERAL_ERROR") || strings.Contains(l.Error, "C_Login: CKR_USER_PIN_NOT_INITIALIZED") ||
		strings.Contains(l.Error, "the key ring has not been read yet")
}

func (n *node) countSecrets(t *testing.T) (int, error) {
	t.Helper()
	var list struct {
		Items []kube.Secret `json:"items"`
	}
	err := n.cluster.Do(t.Context(), http.MethodGet, "/api/v1/namespaces/"+namespace+"/secrets", nil, &list)
	return len(list.Items), err
}

func writeThrough(t *testing.T, n *node, name string) {
	t.Helper()
	if err := n.cluster.CreateSecret(t.Context(), namespace, name, map[string][]byte{"password": []byte(canary(name))}); err != nil {
		t.Fatal(err)
	}
}

// checkLackIsTold checks what a node that lacks a key says: its log the key_id and what to do, its metrics what an alert
// asks for; and that it is well otherwise, under the key it has.
func checkLackIsTold(t *testing.T, n *node, lacks, has string) {
	t.Helper()
	told := false
	for _, line := range readLog(t, n.plugin) {
		told = told || line.Level == "WARN" && strings.Contains(line.text, lacks) && line.Hint != ""
	}
	if !told {
		t.Errorf("no line of %s's log names the key_id it lacks and says what to do", n.name)
	}
	samples, err := metrics(t.Context(), n.http)
	if err != nil {
		t.Fatal(err)
	}
	if v := samples["hsm_kms_unknown_key_requests_total"]; v == "" || v == "0" {
		t.Errorf("%s: hsm_kms_unknown_key_requests_total is %q", n.name, v)
	}
	if current := currentKeys(samples); len(current) != 1 || current[0] != has {
		t.Errorf("%s: current keys in the metrics: %v, want %s", n.name, current, has)
	}
	if status, err := n.plugin.Status(t.Context()); err != nil || status.Healthz != "ok" || status.KeyID != has {
		t.Errorf("%s: status = %+v, %v", n.name, status, err)
	}
	if code, text, err := n.cluster.Health(t.Context(), "/readyz/kms-providers"); err != nil || code != http.StatusOK {
		t.Errorf("%s: readyz/kms-providers is %d %s %v", n.name, code, text, err)
	}
}
