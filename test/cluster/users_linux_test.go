//go:build e2e

package cluster

import (
	"fmt"
	"strings"
	"testing"
)

// TestUsers: API servers that are not root, on the node and as a pod of it. The plugin has no capabilities in either.
func TestUsers(t *testing.T) {
	n := newNode(t, shared, "node-3", 3)
	n.withKubelet(t)
	n.withFirstKey(t)
	n.newCluster(t, "")
	for _, part := range []struct {
		name string
		test func(*testing.T, *node)
	}{
		{"ShutOut", testShutOut}, {"NotRoot", testNotRoot}, {"Nobody", testNobody}, {"Sidecar", testSidecar},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, n) }) {
			t.Fatalf("the state of the node is not known after that: %s",
				n.sh(t, "kubectl get pods -A || true; kubectl -n hosted describe pods | tail -n 40 || true; tail -qn 5 /var/log/pods/*/{hsm-kms,kube-apiserver}/*.log || true"))
		}
	}
}

// testShutOut: a peer that the socket's mode keeps out is a warning of doctor and of serve.
func testShutOut(t *testing.T, n *node) {
	n.sh(t, "cp /etc/hsm-kms/config.yaml /root/config.yaml; echo 'socket: {allowedUIDs: [0, 65532]}' >> /etc/hsm-kms/config.yaml; kill $(pgrep -x hsm-kms)")
	n.until(t, "serve warns", "grep -h 'keep allowed peers out' /var/log/pods/kube-system_hsm-kms*/hsm-kms/*.log | grep 65532")
	n.healthy(t)
	if out := n.sh(t, "hsm-kms doctor"); !strings.Contains(out, "keep allowed peers out: uids [65532]") {
		t.Errorf("doctor says nothing of a peer that is kept out:\n%s", out)
	}
	n.sh(t, "cp /root/config.yaml /etc/hsm-kms/config.yaml")
}

// asUser lets the API server run as a user of its own, by another of kubeadm's patches, beside the documented steps.
func (n *node) asUser(t *testing.T, uid string) {
	t.Helper()
	// kubelet's back-off after the restarts before must not count.
	n.sh(t, strings.ReplaceAll(n.env.block(t, "not-root"), "65532", uid))
	n.until(t, "the plugin's socket has the group", "test \"$(stat -c '%u:%g %a' /run/hsm-kms/kms.sock)\" = '0:"+uid+" 660' && hsm-kms status")
	n.sh(t, fmt.Sprintf(`cd /etc/kubernetes/pki; chown %[1]s apiserver.key apiserver-etcd-client.key apiserver-kubelet-client.key front-proxy-client.key sa.key sa.pub
cd /etc/kubernetes/manifests; cp kube-apiserver.yaml /root/; sed -i '/^  securityContext:/d; /^    seccompProfile:/,+1d' /root/kube-apiserver.yaml
sed 's/^spec:/spec:\n  securityContext: {runAsUser: %[1]s, runAsGroup: %[1]s}/' /root/kube-apiserver.yaml > /root/changed.yaml; cp /root/changed.yaml kube-apiserver.yaml`, uid))
	n.until(t, "the API server runs as "+uid, "test \"$(stat -c %u /proc/$(pgrep -x kube-apiserver))\" = "+uid+" && kubectl get --raw /readyz")
	n.env.deviates("kube-apiserver as a user of its own: by its static pod and the owner of its keys, and not by the feature gate RootlessControlPlane")
	n.checkPod(t)
	n.sh(t, fmt.Sprintf(`kubectl create secret generic of-%[1]s --from-literal=a=b; kubectl get secrets -A; hsm-kms etcd report --require-key current; kubectl get --raw /readyz/kms-providers
grep -q '"operation":"Encrypt".*"peer":{"pid":0,"uid":%[1]s,' /var/log/hsm-kms/audit.log`, uid))
}

func testNotRoot(t *testing.T, n *node) { n.asUser(t, "65532") }

// testNobody: 65534, which is also what the kernel shows of a user that a user namespace does not map.
func testNobody(t *testing.T, n *node) {
	n.sh(t, "cp /root/config.yaml /etc/hsm-kms/config.yaml")
	n.asUser(t, "65534")
	if out := n.sh(t, "hsm-kms doctor"); strings.Contains(out, "keep allowed peers out") {
		t.Errorf("doctor warns of a peer that can connect:\n%s", out)
	}
}

// hosted is a kube-apiserver in a pod of this cluster, as an installer of hosted control planes makes it. Its objects are in
// the etcd of the node, below a prefix of their own.
const hosted = `apiVersion: apps/v1
kind: Deployment
metadata: {name: kube-apiserver, namespace: hosted}
spec:
  replicas: 0
  strategy: {type: Recreate}
  selector: {matchLabels: {app: kube-apiserver}}
  template:
    metadata: {labels: {app: kube-apiserver}}
    spec:
      hostNetwork: true
      tolerations: [{operator: Exists}]
      automountServiceAccountToken: false
      securityContext: {runAsUser: 65534, runAsGroup: 65534}
      containers:
        - name: kube-apiserver
          image: registry.k8s.io/kube-apiserver:%s
          imagePullPolicy: Never
          command:
            - kube-apiserver
            - --secure-port=7443
            - --etcd-prefix=/hosted
            - --etcd-servers=https://127.0.0.1:2379
            - --etcd-cafile=/etc/kubernetes/pki/etcd/ca.crt
            - --etcd-certfile=/etc/kubernetes/pki/apiserver-etcd-client.crt
            - --etcd-keyfile=/etc/kubernetes/pki/apiserver-etcd-client.key
            - --client-ca-file=/etc/kubernetes/pki/ca.crt
            - --tls-cert-file=/etc/kubernetes/pki/apiserver.crt
            - --tls-private-key-file=/etc/kubernetes/pki/apiserver.key
            - --service-account-issuer=https://kubernetes.default.svc
            - --service-account-key-file=/etc/kubernetes/pki/sa.pub
            - --service-account-signing-key-file=/etc/kubernetes/pki/sa.key
            - --service-cluster-ip-range=10.101.0.0/16
            - --authorization-mode=RBAC
          volumeMounts: [{name: pki, mountPath: /etc/kubernetes/pki, readOnly: true}]
      volumes: [{name: pki, hostPath: {path: /etc/kubernetes/pki, type: Directory}}]
`

// softHSMOfSidecar is what stands in for a vendor's module in the image.
const softHSMOfSidecar = `[
{"op": "add", "path": "/spec/template/spec/initContainers/0/volumeMounts/-", "value": {"name": "softhsm", "mountPath": "/usr/lib/softhsm", "readOnly": true}},
{"op": "add", "path": "/spec/template/spec/initContainers/0/volumeMounts/-", "value": {"name": "softhsm-real", "mountPath": "/usr/lib/x86_64-linux-gnu/softhsm", "readOnly": true}},
{"op": "add", "path": "/spec/template/spec/initContainers/0/volumeMounts/-", "value": {"name": "softhsm-config", "mountPath": "/etc/softhsm", "readOnly": true}},
{"op": "add", "path": "/spec/template/spec/initContainers/0/volumeMounts/-", "value": {"name": "softhsm-tokens", "mountPath": "/srv/tokens"}},
{"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "softhsm", "hostPath": {"path": "/usr/lib/softhsm"}}},
{"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "softhsm-real", "hostPath": {"path": "/usr/lib/x86_64-linux-gnu/softhsm"}}},
{"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "softhsm-config", "hostPath": {"path": "/srv/softhsm"}}},
{"op": "add", "path": "/spec/template/spec/volumes/-", "value": {"name": "softhsm-tokens", "hostPath": {"path": "/srv/tokens"}}}
]`

// testSidecar: the printed patch makes a plugin of uid 65532 that serves the API server of uid 65534 beside it.
func testSidecar(t *testing.T, n *node) {
	n.write(t, "shared/hosted.yaml", fmt.Sprintf(hosted, n.env.kube.Version), 0o644)
	n.write(t, "shared/softhsm.json", softHSMOfSidecar, 0o644)
	n.sh(t, `install -d -o 65532 -g 65532 -m 700 /srv/tokens; install -d /srv/softhsm; echo 'directories.tokendir = /srv/tokens' > /srv/softhsm/softhsm2.conf
SOFTHSM2_CONF=/srv/softhsm/softhsm2.conf setpriv --reuid 65532 --regid 65532 --clear-groups softhsm2-util --init-token --free --label k8s --so-pin `+pin+` --pin `+pin+`
kubectl create namespace hosted; kubectl create -f /opt/test/hosted.yaml`)
	script := n.env.block(t, "sidecar-configuration", softHSM,
		deviation{"0.0.0.0:9808", "0.0.0.0:9818", "the pod has the host's network, where the node's own plugin has that port"})
	n.sh(t, strings.Replace(script, "keyRing: change-me", "keyRing: hosted", 1))
	n.document(t, "sidecar")
	n.env.deviates("sidecar: SoftHSM and its token come from the node, because the image has no module; the hosted API server is a Deployment of the test, with the node's certificates")
	n.sh(t, `kubectl -n hosted patch deployment kube-apiserver --type json --patch-file /opt/test/softhsm.json
kubectl -n hosted patch deployment kube-apiserver --type json -p '[{"op": "add", "path": "/spec/template/spec/containers/0/command/-", "value": "`+flagOf(t, n, "--encryption-provider-config=")+`"},
{"op": "add", "path": "/spec/template/spec/containers/0/command/-", "value": "`+flagOf(t, n, "--encryption-provider-config-automatic-reload=")+`"}]'
kubectl -n hosted scale deployment kube-apiserver --replicas 1`)
	n.until(t, "the sidecar runs", "kubectl -n hosted exec deployment/kube-apiserver -c hsm-kms -- hsm-kms keys list")
	n.document(t, "sidecar-key")
	n.until(t, "the plugin says ok", "kubectl -n hosted exec deployment/kube-apiserver -c hsm-kms -- hsm-kms status")
	n.document(t, "sidecar-check")
	const there = "kubectl --kubeconfig /etc/kubernetes/super-admin.conf --server https://node-3:7443 "
	n.until(t, "the hosted API server is ready", there+"get --raw /readyz/kms-providers")
	n.until(t, "it serves", there+"create secret generic hosted --from-literal=a=topsecret")
	etcd := "/opt/kube-server/etcdctl --endpoints https://127.0.0.1:2379 --cacert /etc/kubernetes/pki/etcd/ca.crt --cert /etc/kubernetes/pki/etcd/server.crt --key /etc/kubernetes/pki/etcd/server.key"
	n.sh(t, etcd+" get /hosted/secrets/default/hosted > object; grep -qa k8s:enc:kms:v2:hsm-kms: object; not grep -qa topsecret object")
	// Not root, no capability, and the socket for the pod's group alone.
	n.sh(t, `pod=/var/lib/kubelet/pods/$(kubectl -n hosted get pods -o jsonpath='{.items[0].metadata.uid}')/volumes/kubernetes.io~empty-dir
test "$(stat -c '%u:%g %a' $pod/hsm-kms-socket/kms.sock)" = '65532:65532 660'
test "$(stat -c '%u %a' $pod/hsm-kms-state)" = '0 2777'
grep -q '"operation":"Encrypt".*"peer":{"pid":0,"uid":65534,' $pod/hsm-kms-audit/audit.log
main=$(pgrep -x -u 65532 hsm-kms | head -n 1); grep -P 'CapEff:\t0000000000000000' /proc/$main/status`)
}

// flagOf is a flag of kube-apiserver that the head of the printed patch names.
func flagOf(t *testing.T, n *node, name string) string {
	t.Helper()
	return strings.TrimSpace(n.sh(t, "grep -m 1 -o -e '"+name+"[^ ]*' hsm-kms-sidecar.yaml"))
}
