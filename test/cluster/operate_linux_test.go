//go:build e2e

package cluster

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// testOperate: hsm-kms operate as documented, as a service and then as a static pod: its certificate, the roles and the CRD.
// It sees that the rotation before is done but for the day that it settles.
func testOperate(t *testing.T, n *node) {
	began := time.Now()
	n.document(t, "operate-apply")
	n.document(t, "operate-identity")
	if mode := strings.TrimSpace(n.sh(t, "stat -c '%U %a' /etc/hsm-kms/operate.kubeconfig")); mode != "root 600" {
		t.Errorf("the kubeconfig is %s", mode)
	}
	n.document(t, "operate-unit")
	n.settles(t)
	t.Log(n.sh(t, "kubectl get keyrings | tee shown; grep -qE '^kube-secrets .* Settling .* 1/1 ' shown"))
	n.sh(t, "kubectl describe keyring kube-secrets | tee shown; grep -qE '^ +Normal +Settling ' shown")
	n.sh(t, "hsm-kms doctor | grep -E 'PASS +operate +the client certificate'")
	t.Logf("as a service: %.0f s", time.Since(began).Seconds())
	t.Log(n.sh(t, `exec 3<>/dev/tcp/127.0.0.1/9809; printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; answer=$(cat <&3); grep 'hsm_kms_operate_state{state="Settling"} 1' <<<"$answer"; grep -E '^hsm_kms_operate_(api|actions)' <<<"$answer"`))
	// By its roles it cannot do what it does not need.
	n.sh(t, "for what in 'get secrets -A' 'get nodes' 'delete keyring kube-secrets' 'create namespace more'; do not kubectl --kubeconfig /etc/hsm-kms/operate.kubeconfig $what; done")
	if log := n.sh(t, "journalctl -u hsm-kms-operate -o cat --no-pager"); strings.Contains(log, `"level":"WARN"`) || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("operate warns:\n%s", log)
	}
	n.sh(t, "systemctl disable --now hsm-kms-operate; kubectl delete keyring kube-secrets")

	n.document(t, "operate-pod")
	n.settles(t)
	n.document(t, "operate-command")
	n.sh(t, "rm /etc/kubernetes/manifests/hsm-kms-operate.yaml")
	n.until(t, "the pod of operate ends", "not pgrep -f '[h]sm-kms operate'")
	t.Logf("operate, as a service and as a pod: %.0f s", time.Since(began).Seconds())
}

// settles waits until the KeyRing says that the node is well, and that the old key settles.
func (n *node) settles(t *testing.T) {
	t.Helper()
	var ring struct {
		Status struct{ State, Nodes, CurrentKey, Message string }
	}
	await(t, "the KeyRing settles", func() bool {
		out, code := n.try(t, "kubectl get keyring kube-secrets -o json 2>/dev/null")
		return code == 0 && json.Unmarshal([]byte(out), &ring) == nil && ring.Status.State == "Settling"
	})
	if ring.Status.Nodes != "1/1" || ring.Status.CurrentKey != n.currentKey(t) {
		t.Errorf("the KeyRing says %+v", ring.Status)
	}
}
