//go:build e2e

package cluster

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// kubelet, as the packages of pkgs.k8s.io install it.
const (
	kubeletUnit   = "[Unit]\nDescription=kubelet\nWants=network-online.target\nAfter=network-online.target\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\nStartLimitInterval=0\nRestartSec=10\n[Install]\nWantedBy=multi-user.target\n"
	kubeletDropIn = "[Service]\nEnvironment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf\"\n" +
		"Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\nEnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\nExecStart=\n" +
		"ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n"
)

// containerd's configuration, and why it is not Debian's own.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.2"
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
`

// nodeConfig is the configuration of a node for kubeadm.
const nodeConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %[1]s, bindPort: 6443}
nodeRegistration: {name: %[2]s, criSocket: "unix:///run/containerd/containerd.sock", imagePullPolicy: Never}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
protectKernelDefaults: true
evictionHard: {nodefs.available: "1%%", imagefs.available: "1%%", memory.available: "50Mi"}
---
`

// withKubelet installs a runtime, kubelet and kubeadm, and loads the images.
func (n *node) withKubelet(t *testing.T) {
	t.Helper()
	for path, content := range map[string]string{"kubelet.service": kubeletUnit, "10-kubeadm.conf": kubeletDropIn, "config.toml": containerdConfig,
		"containerd.conf": "[Service]\nOOMScoreAdjust=\nOOMScoreAdjust=0\n"} {
		n.write(t, "shared/"+path, content, 0o644)
	}
	n.sh(t, `ln -s /opt/kube/{kubelet,kubeadm,kubectl} /usr/bin/
install -D -m 0644 /opt/test/config.toml /etc/containerd/config.toml
install -D -m 0644 /opt/test/containerd.conf /etc/systemd/system/containerd.service.d/test.conf
install -D -m 0644 /opt/test/kubelet.service /etc/systemd/system/kubelet.service
install -D -m 0644 /opt/test/10-kubeadm.conf /etc/systemd/system/kubelet.service.d/10-kubeadm.conf
systemctl daemon-reload; systemctl restart containerd; systemctl enable --now kubelet
for image in /opt/images/*.tar; do ctr -n k8s.io images import "$image" > /dev/null; done`)
	for _, text := range []string{
		"kubelet: failCgroupV1: false, and kubeadm: --ignore-preflight-errors=SystemVerification: this machine has cgroup v1",
		"kubelet: oomScoreAdj: 0, containerd: restrict_oom_score_adj and OOMScoreAdjust=0: no CAP_SYS_RESOURCE here",
		"kubeadm: imagePullPolicy: Never, images made by the test: the nodes reach no registry. The plugin's image is that of the tool of make image",
		"kubeadm: no CoreDNS and no kube-proxy: there are no images of them here; pods have the host's network",
		"containerd is Debian's 1.6, with pause and kernel settings (vm.overcommit_memory, kernel.panic) as files: they belong to the whole machine",
	} {
		n.env.deviates(text)
	}
}

// initialise runs kubeadm init with a ClusterConfiguration.
func (n *node) initialise(t *testing.T, cluster string) {
	t.Helper()
	began := time.Now()
	n.write(t, "shared/kubeadm.yaml", fmt.Sprintf(nodeConfig, n.address, n.name)+cluster, 0o644)
	n.sh(t, "kubeadm init --config /opt/test/kubeadm.yaml --skip-phases addon/coredns,addon/kube-proxy,show-join-command --ignore-preflight-errors=SystemVerification 2>&1 || { tail -qn 2 /var/log/pods/*/kube-apiserver/*.log; exit 1; }")
	n.ready(t)
	t.Logf("kubeadm init: ready after %.0f s", time.Since(began).Seconds())
}

func (n *node) ready(t *testing.T) {
	t.Helper()
	n.until(t, "the API server is ready", "kubectl get --raw /readyz")
}

// TestKubeadm: the static pod and kubeadm, a new cluster first, then one that exists and is not kubeadm's default.
func TestKubeadm(t *testing.T) {
	n := newNode(t, shared, "node-2", 2)
	n.withKubelet(t)
	n.withFirstKey(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *node)
	}{
		{"NewCluster", testNewCluster}, {"Rotation", testRotationInPod}, {"PodKilled", testPodKilled}, {"Reboot", testRebootOfNode}, {"Operate", testOperate},
		{"ExistingCluster", testExistingCluster}, {"LaterUpgrade", testLaterUpgrade}, {"ByPatch", testByPatch},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, n) }) {
			t.Fatalf("the state of the node is not known after that: %s", n.sh(t, "kubectl get pods -A || true; tail -qn 5 /var/log/pods/kube-system_hsm-kms*/hsm-kms/*.log || true"))
		}
	}
}

// withFirstKey prepares the node, and the first key for a cluster that does not run yet.
func (n *node) withFirstKey(t *testing.T) {
	t.Helper()
	n.configure(t)
	n.sh(t, "softhsm2-util --init-token --free --label k8s --so-pin "+pin+" --pin "+pin)
	if out, _ := n.try(t, n.env.block(t, "doctor")); strings.Count(out, "FAIL") != 1 || !strings.Contains(out, "the key ring is empty") {
		t.Errorf("doctor finds more than an empty ring:\n%s", out)
	}
	// The document: leave it out where the cluster does not run yet.
	n.sh(t, strings.Replace(n.env.block(t, "key"), " --kubeconfig /etc/kubernetes/admin.conf", "", 1))
}

// testNewCluster: kubeadm init with the printed configuration; a Secret is under the key from the first.
func testNewCluster(t *testing.T, n *node) {
	n.newCluster(t, "")
	n.sh(t, "kubectl create secret generic canary --from-literal=a=topsecret")
	n.sh(t, "hsm-kms etcd report --require-key current")
	if out := n.sh(t, "not grep -rq topsecret /var/lib/etcd; kubectl get secret canary -o jsonpath='{.data.a}'"); out != "dG9wc2VjcmV0" {
		t.Errorf("the Secret reads %q", out)
	}
	n.checkPod(t)
	// As docs/audit.md says: a pod has pids of its own.
	n.sh(t, `grep -q '"operation":"Encrypt".*"peer":{"pid":0,"uid":0,"executable":""}' /var/log/hsm-kms/audit.log`)
}

// newCluster makes a cluster as documented, with more lines for its ClusterConfiguration.
func (n *node) newCluster(t *testing.T, more string) {
	t.Helper()
	n.document(t, "pod")
	printed := n.document(t, "new-cluster")
	_, cluster, found := strings.Cut(printed, "apiVersion: kubeadm.k8s.io/v1beta4")
	if !found {
		t.Fatalf("no ClusterConfiguration is printed:\n%s", printed)
	}
	n.initialise(t, "apiVersion: kubeadm.k8s.io/v1beta4"+cluster+"kubernetesVersion: "+n.env.kube.Version+"\nnetworking: {podSubnet: 10.244.0.0/16}\n"+more)
	n.document(t, "new-cluster-check")
}

// checkPod holds the running pod against what the manifest promises.
func (n *node) checkPod(t *testing.T) {
	t.Helper()
	status := n.sh(t, "cat /proc/$(pgrep -x hsm-kms)/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("the plugin's process has no %q:\n%s", want, status)
		}
	}
}

// testRotationInPod: the pod goes on, no restart; what was written is rewritten and proven.
func testRotationInPod(t *testing.T, n *node) {
	before := n.sh(t, "pgrep -x hsm-kms")
	n.sh(t, "hsm-kms keys rotate --activate-in 1m")
	n.activated(t)
	n.document(t, "migrate")
	if after := n.sh(t, "pgrep -x hsm-kms"); before != after {
		t.Errorf("the plugin was started again: pid %s, then %s", before, after)
	}
}

// testPodKilled: kubelet starts the plugin again, and it takes over the socket that was left.
func testPodKilled(t *testing.T, n *node) {
	began := time.Now()
	n.sh(t, "kill -9 $(pgrep -x hsm-kms)")
	n.healthy(t)
	t.Logf("the plugin was killed: healthy after %.1f s", time.Since(began).Seconds())
	n.sh(t, "kubectl create secret generic after-kill --from-literal=a=b")
}

func testRebootOfNode(t *testing.T, n *node) {
	began := time.Now()
	n.reboot(t)
	n.ready(t)
	t.Logf("rebooted, and ready after %.0f s", time.Since(began).Seconds())
	n.sh(t, "kubectl get secret canary after-kill && hsm-kms etcd report --require-key current")
}

// custom is a ClusterConfiguration with settings that are not kubeadm's defaults.
const custom = `apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %s
networking: {podSubnet: 10.244.0.0/16, serviceSubnet: 10.100.0.0/16}
controlPlaneEndpoint: %s:6443
apiServer:
  extraArgs:
    - {name: event-ttl, value: 2h}
    - {name: service-node-port-range, value: 20000-22767}
    - {name: audit-log-path, value: /var/log/kubernetes/audit.log}
    - {name: audit-policy-file, value: /etc/kubernetes/audit.yaml}
  extraVolumes:
    - {name: audit, hostPath: /var/log/kubernetes, mountPath: /var/log/kubernetes, pathType: DirectoryOrCreate}
    - {name: policy, hostPath: /etc/kubernetes/audit.yaml, mountPath: /etc/kubernetes/audit.yaml, readOnly: true, pathType: File}
`

// testExistingCluster: a cluster with plain text and with settings of its own gets our lines and no other difference.
func testExistingCluster(t *testing.T, n *node) {
	n.sh(t, "kubeadm reset -f > /dev/null 2>&1; rm -rf /etc/kubernetes /var/lib/etcd/* /var/lib/hsm-kms /var/log/hsm-kms; mkdir /etc/kubernetes; printf 'apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n' > /etc/kubernetes/audit.yaml")
	n.initialise(t, fmt.Sprintf(custom, n.env.kube.Version, n.name))
	n.sh(t, "for i in 1 2 3; do kubectl create secret generic old$i --from-literal=a=plaintext$i; done; cp -a /etc/kubernetes/manifests /root/manifests.before")
	before := n.pod(t, "/root/manifests.before/kube-apiserver.yaml")

	// The ring of before belongs to the cluster of before.
	n.sh(t, "sed -i 's/^keyRing: kube-secrets/keyRing: second/' /etc/hsm-kms/config.yaml")
	n.document(t, "key")
	n.document(t, "pod")
	n.healthy(t)
	n.document(t, "step-1")
	n.editConfigMap(t, func(cluster map[string]any, printed string) {
		mergeAPIServer(t, cluster, printed)
	})
	began := time.Now()
	n.document(t, "apply")
	n.ready(t)
	t.Logf("kubeadm upgrade node phase control-plane: %.0f s", time.Since(began).Seconds())
	onlyOurs(t, before, n.pod(t, "/etc/kubernetes/manifests/kube-apiserver.yaml"))
	n.sh(t, "for f in etcd kube-controller-manager kube-scheduler; do cmp /root/manifests.before/$f.yaml /etc/kubernetes/manifests/$f.yaml; done")

	n.document(t, "step-2")
	n.document(t, "migrate")
	if out := n.sh(t, "kubectl get secrets old1 old2 old3 -o jsonpath='{.items[*].data.a}'"); out != "cGxhaW50ZXh0MQ== cGxhaW50ZXh0Mg== cGxhaW50ZXh0Mw==" {
		t.Errorf("the Secrets read %q", out)
	}
}

// testLaterUpgrade: kubeadm writes the same pod again.
func testLaterUpgrade(t *testing.T, n *node) {
	n.sh(t, "cp /etc/kubernetes/manifests/kube-apiserver.yaml /root/ours.yaml; kubeadm upgrade node phase control-plane; cmp /root/ours.yaml /etc/kubernetes/manifests/kube-apiserver.yaml")
	n.ready(t)
	n.sh(t, "kubectl get secret old1")
}

// testByPatch: the other way, on the same cluster, gives the same pod; the ConfigMap has none of our lines then.
func testByPatch(t *testing.T, n *node) {
	want := n.pod(t, "/etc/kubernetes/manifests/kube-apiserver.yaml")
	n.editConfigMap(t, func(cluster map[string]any, _ string) {
		server := cluster["apiServer"].(map[string]any)
		for field, ours := range map[string]string{"extraArgs": "encryption-provider", "extraVolumes": "hsm-kms-socket encryption-config"} {
			server[field] = slices.DeleteFunc(server[field].([]any), func(item any) bool {
				name := item.(map[string]any)["name"].(string)
				return strings.HasPrefix(name, ours) || strings.Contains(ours, name)
			})
		}
	})
	n.document(t, "patch")
	n.ready(t)
	got := n.pod(t, "/etc/kubernetes/manifests/kube-apiserver.yaml")
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		t.Errorf("by patch the pod differs from that by ConfigMap (-ConfigMap +patch):\n%s", diff)
	}
	n.sh(t, "kubectl get secret old1")
}

// editConfigMap runs the documented edit of kubeadm's ConfigMap, with a program in the place of a person.
func (n *node) editConfigMap(t *testing.T, edit func(cluster map[string]any, printed string)) {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(n.sh(t, "kubectl -n kube-system get configmap kubeadm-config -o json")), &object); err != nil {
		t.Fatal(err)
	}
	data := object["data"].(map[string]any)
	var cluster map[string]any
	if err := yaml.Unmarshal([]byte(data["ClusterConfiguration"].(string)), &cluster); err != nil {
		t.Fatal(err)
	}
	edit(cluster, n.sh(t, "hsm-kms manifests kubeadm --file kubeadm-config.yaml"))
	text, err := yaml.Marshal(cluster)
	if err != nil {
		t.Fatal(err)
	}
	data["ClusterConfiguration"] = string(text)
	edited, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	n.write(t, "shared/edited.yaml", string(edited), 0o644)
	n.sh(t, "export KUBE_EDITOR='cp /opt/test/edited.yaml'\n"+n.env.block(t, "configmap"))
}

// mergeAPIServer adds what is printed to the lists of a ClusterConfiguration.
func mergeAPIServer(t *testing.T, cluster map[string]any, printed string) {
	t.Helper()
	var ours map[string]any
	if err := yaml.Unmarshal([]byte(printed), &ours); err != nil {
		t.Fatal(err)
	}
	server, added := cluster["apiServer"].(map[string]any), ours["apiServer"].(map[string]any)
	for _, field := range []string{"extraArgs", "extraVolumes"} {
		server[field] = append(server[field].([]any), added[field].([]any)...)
	}
}

func (n *node) pod(t *testing.T, path string) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(n.sh(t, "cat "+path)), &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

// onlyOurs fails the test unless after is before with two flags, two mounts and two volumes.
func onlyOurs(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	without := after.DeepCopy()
	c := &without.Spec.Containers[0]
	flags, mounts, volumes := len(c.Command), len(c.VolumeMounts), len(without.Spec.Volumes)
	c.Command = slices.DeleteFunc(c.Command, func(arg string) bool { return strings.HasPrefix(arg, "--encryption-provider-config") })
	ours := func(name string) bool { return name == "encryption-config" || name == "hsm-kms-socket" }
	c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return ours(m.Name) })
	without.Spec.Volumes = slices.DeleteFunc(without.Spec.Volumes, func(v corev1.Volume) bool { return ours(v.Name) })
	if flags-len(c.Command) != 2 || mounts-len(c.VolumeMounts) != 2 || volumes-len(without.Spec.Volumes) != 2 {
		t.Errorf("our lines are not two flags, two mounts and two volumes:\n%s", cmp.Diff(before, after))
	}
	if diff := cmp.Diff(sorted(before), sorted(without)); diff != "" {
		t.Errorf("beside our lines the API server's pod is changed:\n%s", diff)
	}
}

// sorted brings lists into an order that says nothing by itself; the first word of the command stays.
func sorted(pod *corev1.Pod) *corev1.Pod {
	s := pod.DeepCopy()
	slices.Sort(s.Spec.Containers[0].Command[1:])
	slices.SortFunc(s.Spec.Containers[0].VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Spec.Volumes, func(a, b corev1.Volume) int { return strings.Compare(a.Name, b.Name) })
	return s
}
