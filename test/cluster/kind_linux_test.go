//go:build e2e

package cluster

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestKind: what the documents say of kind, on a node in the place of kind's: the files are rendered as printed, in a folder
// without /etc/hsm-kms; each instruction of Dockerfile.kind is run, in its order; the node boots, and kubeadm takes what
// kind.yaml has for it. Docker and kind themselves are not run.
func TestKind(t *testing.T) {
	n := newNode(t, shared, "node-7", 7)
	n.withKubelet(t)
	n.sh(t, "test ! -e /etc/hsm-kms")
	n.document(t, "kind-configuration")
	n.document(t, "kind")
	n.env.deviates("kind: the instructions of Dockerfile.kind are run on a node of the test, without Docker and kind; SoftHSM is in the node already")
	n.build(t, n.sh(t, "cat trial/Dockerfile.kind"))
	n.reboot(t)
	n.healthy(t)

	var cluster struct {
		Patches []string `json:"kubeadmConfigPatches"`
	}
	if err := yaml.Unmarshal([]byte(n.sh(t, "cat trial/kind.yaml")), &cluster); err != nil || len(cluster.Patches) == 0 {
		t.Fatalf("kind.yaml has no patches: %v", err)
	}
	n.initialise(t, cluster.Patches[0]+"kubernetesVersion: "+n.env.kube.Version+"\nnetworking: {podSubnet: 10.244.0.0/16}\n")
	n.document(t, "kind-check", deviation{"docker exec hsm-kms-control-plane ", "", "the node is not Docker's"},
		deviation{"docker exec -e CREDENTIALS_DIRECTORY=/etc/hsm-kms hsm-kms-control-plane ", "CREDENTIALS_DIRECTORY=/etc/hsm-kms ", "the node is not Docker's"})
	n.sh(t, "kubectl create secret generic canary --from-literal=a=topsecret; not grep -rq topsecret /var/lib/etcd")
	// As docs/audit.md says: the plugin's user learns the process of the API server, and not its program.
	n.sh(t, `grep -q '"operation":"Encrypt".*"peer":{"pid":'"$(pgrep -x kube-apiserver)"',"uid":0,"executable":""}' /var/log/hsm-kms/audit.log`)
	// The service is that of every node with systemd, and so are the commands beside a cluster.
	n.sh(t, "hsm-kms manifests systemd --file hsm-kms-as-plugin --output /usr/local/sbin/hsm-kms-as-plugin")
	n.document(t, "systemd-bind")
	n.sh(t, n.env.block(t, "systemd-root")+"hsm-kms doctor --encryption-config /etc/kubernetes/enc/encryption.yaml\n"+n.env.block(t, "migrate"))
	// The plugin's user can go on with what root writes there, in either order.
	pending := "pending=$(hsm-kms-as-plugin keys rotate --activate-in 720h -o json | grep -o '\"kind-[^\"/]*/hk1-[^\"]*' | head -n 1 | tr -d '\"')\n"
	n.sh(t, pending+n.env.block(t, "systemd-root")+`hsm-kms keys retire "$pending" --yes`)
	n.sh(t, pending+`hsm-kms-as-plugin keys retire "$pending" --no-etcd --yes`)
	if out := n.sh(t, "find /var/lib/hsm-kms /var/log/hsm-kms /var/lib/softhsm/tokens -not -user hsm-kms"); out != "" {
		t.Errorf("not the plugin's own:\n%s", out)
	}
}

// build runs the instructions of a Dockerfile, as its last stage: what it copies from an earlier one is on the node already.
func (n *node) build(t *testing.T, dockerfile string) {
	t.Helper()
	args := ""
	for line := range strings.Lines(strings.ReplaceAll(dockerfile, "\\\n", " ")) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "" || strings.HasPrefix(word, "#") || word == "FROM":
		case word == "ARG":
			args += "export " + rest + "\n"
		case word == "RUN" && strings.HasPrefix(rest, "apt-get "):
		case word == "RUN":
			n.sh(t, args+rest)
		case word == "COPY":
			n.copy(t, rest)
		default:
			t.Fatalf("nothing is known of the instruction %s", line)
		}
	}
}

// copy is COPY: folders are made, and a file is root's.
func (n *node) copy(t *testing.T, rest string) {
	t.Helper()
	words := regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(rest, -1)
	for i, word := range words {
		if strings.HasPrefix(word, `"`) {
			if err := json.Unmarshal([]byte(word), &words[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	to := words[len(words)-1]
	if strings.HasPrefix(words[0], "--from=") {
		n.sh(t, "test -x "+to)
		return
	}
	folder := path.Dir(to)
	if strings.HasSuffix(to, "/") {
		folder = to
	}
	n.sh(t, fmt.Sprintf("mkdir -p %s; cd trial; cp --no-preserve=ownership %s %s", folder, strings.Join(words[:len(words)-1], " "), to))
}
