//go:build e2e

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestThreeNodes: three control-plane nodes, each with an etcd, an API server, a plugin and a copy of the token; two of them
// join. One is lost and comes back, and one rotation is seen on all.
func TestThreeNodes(t *testing.T) {
	if os.Getenv("HSM_KMS_CLUSTER_FULL") == "" {
		t.Skip("NOT RUN: a join, three nodes, failover; use make cluster FULL=1")
	}
	first := newNode(t, shared, "node-4", 4)
	first.withKubelet(t)
	first.withFirstKey(t)
	first.newCluster(t, "controlPlaneEndpoint: node-4:6443\n")
	first.sh(t, "kubectl create secret generic before --from-literal=a=b")
	nodes := []*node{first}
	for number := 5; number <= 6; number++ {
		nodes = append(nodes, first.joined(t, fmt.Sprintf("node-%d", number), number))
	}
	for _, part := range []struct {
		name string
		test func(*testing.T, []*node)
	}{
		{"SeenByAll", testSeenByAll}, {"Upgrade", testUpgradeOfThree}, {"Rotation", testRotationOfThree}, {"Failover", testFailover},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, nodes) }) {
			t.Fatalf("the state of the nodes is not known after that: %s", first.sh(t, "kubectl get nodes,pods -A || true"))
		}
	}
}

// joined makes another control-plane node, as documented: all of the first one's files and its key, and then kubeadm join.
func (n *node) joined(t *testing.T, name string, number int) *node {
	t.Helper()
	began := time.Now()
	j := newNode(t, n.env, name, number)
	j.withKubelet(t)
	j.configure(t)
	n.copyToken(t, j)
	want := n.sh(t, "hsm-kms keys list | grep -o 'kube-secrets/hk1-[^ ]*'")
	if got := j.sh(t, "hsm-kms doctor > doctor; hsm-kms keys list | grep -o 'kube-secrets/hk1-[^ ]*'"); got != want {
		t.Errorf("%s has the keys %s, and %s %s", n.name, want, name, got)
	}
	j.document(t, "pod")
	j.document(t, "new-cluster")
	key := strings.TrimSpace(n.sh(t, "kubeadm init phase upload-certs --upload-certs 2> /dev/null | tail -n 1"))
	join := strings.TrimSpace(n.sh(t, "kubeadm token create --print-join-command 2> /dev/null"))
	j.sh(t, join+" --control-plane --certificate-key "+key+" --apiserver-advertise-address "+j.address+" --node-name "+name+
		" --ignore-preflight-errors=SystemVerification > join.log 2>&1 || { tail -n 30 join.log; exit 1; }")
	j.until(t, "its API server is ready", j.server("get --raw /readyz"))
	j.sh(t, j.server("get --raw /readyz/kms-providers"))
	t.Logf("%s joined after %.0f s", name, time.Since(began).Seconds())
	return j
}

// server is a kubectl command to the node's own API server.
func (n *node) server(command string) string {
	return "kubectl --server https://" + n.name + ":6443 " + command
}

// copyToken makes the token of another node the same as this one's, as a vendor's tool copies keys.
func (n *node) copyToken(t *testing.T, to *node) {
	t.Helper()
	n.sh(t, "tar -C /var/lib/softhsm/tokens -cf /opt/test/tokens.tar .")
	data, err := os.ReadFile(filepath.Join(n.shared, "tokens.tar"))
	if err := errors.Join(err, os.WriteFile(filepath.Join(to.shared, "tokens.tar"), data, 0o600)); err != nil {
		t.Fatal(err)
	}
	to.sh(t, "tar -C /var/lib/softhsm/tokens -xf /opt/test/tokens.tar")
}

// testSeenByAll: what one API server writes each other one reads, and the flags came with the cluster's configuration.
func testSeenByAll(t *testing.T, nodes []*node) {
	for _, writer := range nodes {
		writer.sh(t, writer.server("create secret generic by-"+writer.name+" --from-literal=a=b"))
		for _, reader := range nodes {
			reader.sh(t, reader.server("get secret before by-"+writer.name))
		}
		writer.sh(t, "grep -e --encryption-provider-config=/etc/kubernetes/enc/encryption.yaml /etc/kubernetes/manifests/kube-apiserver.yaml")
	}
	nodes[0].sh(t, "hsm-kms etcd report --require-key current")
}

// testUpgradeOfThree: kubeadm's upgrades, to the release that runs, write the same pods again, our lines included.
func testUpgradeOfThree(t *testing.T, nodes []*node) {
	for i, n := range nodes {
		command := "node"
		if i == 0 {
			command = "apply --yes --force " + n.env.kube.Version
		}
		n.sh(t, "cp /etc/kubernetes/manifests/kube-apiserver.yaml /root/ours.yaml; kubeadm upgrade "+command+
			" --certificate-renewal=false --etcd-upgrade=false --skip-phases addon --ignore-preflight-errors=all > upgrade.log 2>&1 || { tail -n 30 upgrade.log; exit 1; }")
		n.sh(t, "cmp /root/ours.yaml /etc/kubernetes/manifests/kube-apiserver.yaml")
		n.until(t, "its API server is ready", n.server("get --raw /readyz/kms-providers"))
		n.env.deviates("kubeadm upgrade: to the release that runs, without its checks (--ignore-preflight-errors=all: the nodes have no network of pods) and without addons")
	}
}

// testRotationOfThree: the key is copied in time, and all three plugins make it current with no restart.
func testRotationOfThree(t *testing.T, nodes []*node) {
	before := make([]string, len(nodes))
	for i, n := range nodes {
		before[i] = n.sh(t, "pgrep -x hsm-kms")
	}
	nodes[0].sh(t, "hsm-kms keys rotate --activate-in 3m")
	for _, n := range nodes[1:] {
		nodes[0].copyToken(t, n)
	}
	keys := map[string]bool{}
	for i, n := range nodes {
		if i == 0 {
			n.activated(t)
		}
		n.until(t, "the plugin has the key of the first", "test \"$(hsm-kms status | awk '$1 == \"key_id\" {print $2}')\" = '"+nodes[0].currentKey(t)+"'")
		keys[n.currentKey(t)] = true
		if after := n.sh(t, "pgrep -x hsm-kms"); after != before[i] {
			t.Errorf("%s: the plugin was started again", n.name)
		}
	}
	if len(keys) != 1 {
		t.Errorf("the nodes have the keys %v", keys)
	}
	if out := nodes[0].document(t, "migrate"); !strings.Contains(out, nodes[2].address) {
		t.Errorf("migrate proves nothing of the third API server:\n%s", out)
	}
}

func (n *node) currentKey(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(n.sh(t, "hsm-kms status | awk '$1 == \"key_id\" {print $2}'"))
}

// testFailover: the first node, which made the cluster, loses its power. The others write and read; it comes back and reads
// what was written meanwhile.
func testFailover(t *testing.T, nodes []*node) {
	first, others := nodes[0], nodes[1:]
	first.off()
	began := time.Now()
	for _, n := range others {
		n.until(t, "it writes without "+first.name, n.server("create secret generic without-"+n.name+" --from-literal=a=b"))
	}
	t.Logf("without %s: both others wrote after %.0f s", first.name, time.Since(began).Seconds())
	for _, n := range others {
		n.sh(t, n.server("get secret before without-"+others[0].name+" without-"+others[1].name))
	}
	first.boot(t)
	first.ready(t)
	first.until(t, "it reads", first.server("get secret before without-"+others[0].name+" without-"+others[1].name))
	first.sh(t, "hsm-kms etcd report --require-key current")
}
