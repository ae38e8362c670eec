//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// authority signs the client certificates of the operates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(dir, "client-ca.crt")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pemOf("CERTIFICATE", der), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// kubeconfig writes one whose user is a certificate of the group that the printed roles are for.
func (a *authority) kubeconfig(t *testing.T, path, name string, via *node, all []*node) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "hsm-kms:operate:" + name, Organization: []string{"hsm-kms:operators"}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var others []*kube.Cluster
	for _, n := range all {
		if n != via {
			others = append(others, n.cluster)
		}
	}
	if err := via.cluster.WriteKubeconfigOf(path, "none", others...); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	config["users"] = []any{map[string]any{"name": "test", "user": map[string]any{
		"client-certificate-data": pemOf("CERTIFICATE", der), "client-key-data": pemOf("EC PRIVATE KEY", keyDER),
	}}}
	if data, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// operated are the resources of which operate takes care: a built-in one and a custom one.
const operated = "secrets," + kube.Widgets

// applyPrinted makes what hsm-kms manifests operator prints.
func applyPrinted(t *testing.T, n *node, file string) {
	t.Helper()
	printed, err := n.plugin.Run(t.Context(), "manifests", "operator", "--resources", operated, "--file", file)
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{
		"Namespace": "/api/v1/namespaces", "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/roles",
		"RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/rolebindings", "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
		"ClusterRoleBinding":       "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
		"CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
	}
	for text := range bytes.SplitSeq(printed, []byte("\n---\n")) {
		var object struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		}
		var whole map[string]any
		if err := errors.Join(yaml.Unmarshal(text, &object), yaml.Unmarshal(text, &whole)); err != nil {
			t.Fatal(err)
		}
		path := paths[object.Kind]
		if strings.Contains(path, "%s") {
			path = fmt.Sprintf(path, object.Metadata.Namespace)
		}
		if err := n.cluster.Do(t.Context(), http.MethodPost, path, whole, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// operate is one running hsm-kms operate.
type operate struct {
	args []string
	log  string
	proc *proc.Process
}

func (o *operate) start(t *testing.T) {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	if o.proc, err = proc.Start(proc.Spec{Name: "hsm-kms operate", Path: bin.HSMKMS, Args: o.args, Log: o.log}); err != nil {
		t.Fatal(err)
	}
}

// ringStatus is what the test looks at of a KeyRing.
type ringStatus struct {
	State, Message, Hint, CurrentKey, Nodes, Command, Leader string
	Retirable                                                []string
	ObjectsLeft                                              int64
	History                                                  []struct{ State, Message string }
}

// checkHistory checks that the KeyRing went through the states.
func (s ringStatus) checkHistory(t *testing.T, states ...string) {
	t.Helper()
	for _, state := range states {
		if !slices.ContainsFunc(s.History, func(c struct{ State, Message string }) bool { return c.State == state }) {
			t.Errorf("the history has no %s", state)
		}
	}
}

func (p *plane) keyRing(ctx context.Context) (ringStatus, error) {
	var ring struct {
		Status ringStatus `json:"status"`
	}
	err := p.nodes[0].cluster.Do(ctx, http.MethodGet, "/apis/hsm-kms.io/v1alpha1/keyrings/kube-secrets", nil, &ring)
	return ring.Status, err
}

// waitState waits until the KeyRing has the state and what ok asks for besides.
func (p *plane) waitState(t *testing.T, state string, patience time.Duration, ok func(ringStatus) bool) ringStatus {
	t.Helper()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for {
		status, err := p.keyRing(t.Context())
		if err == nil && status.State == state && (ok == nil || ok(status)) {
			t.Logf("%s: %s", state, status.Message)
			return status
		}
		select {
		case <-timeout:
			t.Fatalf("the KeyRing was not %s within %s: %+v, %v", state, patience, status, err)
		case <-tick.C:
		}
	}
}

// A rotation of three nodes with 1,000 Secrets, whose clients write Secrets and custom resources all the time, with an operate
// beside each, under the roles that are printed. On the way a plugin is away, the leader is killed, admission refuses the
// canaries, and while objects are rewritten an API server and a member of etcd are killed: its work goes on when the cause
// is gone. Nobody does anything but rotate, and retire at the end. In every state and of every part: TestKillMatrix of package operator.
func TestOperate(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ca := newAuthority(t, dir)
	p := newPlaneWith(t, planeOptions{args: []string{"--client-ca-file=" + ca.file}, resources: strings.Split(operated, ","), create: func(_ *plane, n *node) {
		if _, err := n.plugin.CreateKey(t.Context()); err != nil {
			t.Fatal(err)
		}
	}})
	if err := p.nodes[0].cluster.DefineWidgets(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.fill(t, 1000)
	applyPrinted(t, p.nodes[0], "operate-rbac.yaml")
	applyPrinted(t, p.nodes[0], "keyring-crd.yaml")
	old, err := p.nodes[0].plugin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tr, widgets := startTraffic(t, p.nodes), p.writeWidgets(t)
	tr.waitMore(t, 60)
	operates := p.startOperates(t, dir, ca)
	p.waitState(t, "Active", 2*patience, func(s ringStatus) bool { return s.Nodes == "3/3" && s.CurrentKey == old.KeyID })

	p.awayForAMoment(t)
	p.refuseCanaries(t)
	key, err := p.nodes[1].plugin.RotateKey(t.Context(), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	p.waitState(t, "Announced", patience, nil)
	p.killLeader(t, operates)

	p.waitState(t, "Proving", 4*patience, func(s ringStatus) bool { return strings.Contains(s.Message, "no canaries here") })
	if err := p.nodes[0].cluster.Do(t.Context(), http.MethodDelete, policies+"ybindings/canaries", nil, nil); err != nil {
		t.Fatal(err)
	}
	p.waitState(t, "Migrating", 2*patience, nil)
	tr.check(t) // what is killed now was answering clients
	widgets(t)
	p.killInTheMiddle(t)
	tr = startTraffic(t, p.nodes)
	done := p.waitState(t, "Retirable", 6*patience, nil)
	t.Logf("history: %+v", done.History)
	if !slices.Equal(done.Retirable, []string{old.KeyID}) || done.CurrentKey != key.KeyID || done.ObjectsLeft != 0 {
		t.Errorf("the KeyRing says %+v", done)
	}
	done.checkHistory(t, "Active", "Blocked", "Announced", "Proving", "Migrating", "Settling", "Retirable")
	tr.check(t)

	p.retireAsTold(t, p.leader(done), done, old.KeyID)
	p.waitState(t, "Steady", 2*patience, func(s ringStatus) bool { return len(s.Retirable) == 0 && s.Command == "" })
	tr.check(t)
	p.checkEvents(t)
	for _, o := range operates {
		if !o.proc.Running() {
			t.Errorf("an operate ended: %s", o.proc.Tail(20))
		}
	}
}

// fill makes n Secrets, through all API servers.
func (p *plane) fill(t *testing.T, n int) {
	t.Helper()
	var making sync.WaitGroup
	errs := make([]error, len(p.nodes))
	for at, node := range p.nodes {
		making.Go(func() {
			for i := at; i < n && errs[at] == nil; i += len(p.nodes) {
				errs[at] = node.cluster.CreateSecret(t.Context(), namespace, fmt.Sprintf("filled-%04d", i), map[string][]byte{"password": []byte("x")})
			}
		})
	}
	making.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// writeWidgets writes custom resources through every API server until check is called.
func (p *plane) writeWidgets(t *testing.T) (check func(t *testing.T)) {
	t.Helper()
	for _, n := range p.nodes {
		eventually(t, n.name+" serves widgets", func() (bool, string) {
			err := n.cluster.CreateWidget(t.Context(), namespace, n.name+"-first", "spec")
			return err == nil, fmt.Sprint(err)
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	failed := make([]error, len(p.nodes))
	for at, n := range p.nodes {
		writing.Go(func() {
			every(ctx, writeEvery, func(i int) {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				defer cancel()
				failed[at] = errors.Join(failed[at], n.cluster.CreateWidget(ctx, namespace, fmt.Sprintf("%s-%05d", n.name, i), "spec"))
			})
		})
	}
	finish := sync.OnceValue(func() error { stop(); writing.Wait(); return errors.Join(failed...) })
	t.Cleanup(func() { _ = finish() })
	return func(t *testing.T) {
		t.Helper()
		if err := finish(); err != nil {
			t.Errorf("writing custom resources: %v", err)
		}
	}
}

// killInTheMiddle kills an API server and a member of etcd, and starts them again when the API server is missed.
func (p *plane) killInTheMiddle(t *testing.T) {
	t.Helper()
	n := p.nodes[2]
	n.cluster.APIServer().Kill()
	p.etcd.Kill(2)
	if s := p.waitState(t, "Blocked", 2*patience, nil); s.Hint == "" {
		t.Errorf("without an API server the KeyRing says %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := errors.Join(p.etcd.Launch(2), n.cluster.StartAPIServer(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.etcd.WaitReady(ctx), n.cluster.WaitReady(ctx)); err != nil {
		t.Fatal(err)
	}
}

// leader is the node that leads.
func (p *plane) leader(s ringStatus) *node {
	return p.nodes[slices.IndexFunc(p.nodes, func(n *node) bool { return n.name == s.Leader })]
}

// killLeader kills the operate that leads, and starts it again when another one does.
func (p *plane) killLeader(t *testing.T, operates []*operate) {
	t.Helper()
	was, err := p.keyRing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	killed := operates[slices.Index(p.nodes, p.leader(was))]
	killed.proc.Kill()
	eventually(t, "another node leads", func() (bool, string) {
		s, err := p.keyRing(t.Context())
		return err == nil && s.Leader != was.Leader, s.Leader
	})
	killed.start(t)
}

// awayForAMoment takes the plugin of a node away, and brings it back.
func (p *plane) awayForAMoment(t *testing.T) {
	t.Helper()
	n := p.nodes[2]
	if err := n.plugin.Stop(); err != nil {
		t.Fatal(err)
	}
	if s := p.waitState(t, "Blocked", patience, nil); !strings.Contains(s.Message, n.name) || s.Hint == "" {
		t.Errorf("without a plugin on %s the KeyRing says %+v", n.name, s)
	}
	if _, err := n.plugin.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.waitState(t, "Active", patience, nil)
}

const policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"

// refuseCanaries has admission refuse what shows under which key an API server writes, on every API server.
func (p *plane) refuseCanaries(t *testing.T) {
	t.Helper()
	policy := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": kube.Meta{Name: "canaries"},
		"spec": map[string]any{
			"matchConstraints": map[string]any{"resourceRules": []any{map[string]any{
				"apiGroups": []string{""}, "apiVersions": []string{"v1"}, "operations": []string{"CREATE"}, "resources": []string{"secrets"},
			}}},
			"validations": []any{map[string]any{
				"expression": "!has(object.metadata.labels) || !('hsm-kms/canary' in object.metadata.labels)", "message": "no canaries here",
			}},
		},
	}
	binding := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": kube.Meta{Name: "canaries"},
		"spec": map[string]any{"policyName": "canaries", "validationActions": []string{"Deny"}},
	}
	for suffix, object := range map[string]any{"ies": policy, "ybindings": binding} {
		if err := p.nodes[0].cluster.Do(t.Context(), http.MethodPost, policies+suffix, object, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range p.nodes {
		eventually(t, n.name+" refuses canaries", func() (bool, string) {
			secret := kube.Secret{APIVersion: "v1", Kind: "Secret", Metadata: kube.Meta{Name: fmt.Sprintf("refused-%d-%d", i, time.Now().UnixNano()), Labels: map[string]string{"hsm-kms/canary": "true"}}}
			err := n.cluster.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/"+namespace+"/secrets", secret, nil)
			return err != nil && strings.Contains(err.Error(), "no canaries here"), fmt.Sprint(err)
		})
	}
}

// retireAsTold runs the command that the KeyRing names, as a person does.
func (p *plane) retireAsTold(t *testing.T, n *node, s ringStatus, keyID string) {
	t.Helper()
	args := strings.Fields(strings.ReplaceAll(strings.TrimPrefix(s.Command, "hsm-kms "), "'", ""))
	out, err := n.plugin.Run(t.Context(), append(args, "--sole-cluster", "--yes")...)
	if err != nil || !strings.Contains(string(out), "Destroyed "+keyID) {
		t.Errorf("%s: %v\n%s", s.Command, err, out)
	}
}

// startOperates starts one beside each plugin, with more flags if need be.
func (p *plane) startOperates(t *testing.T, dir string, ca *authority, flags ...string) []*operate {
	t.Helper()
	var operates []*operate
	for _, n := range p.nodes {
		kubeconfig := filepath.Join(dir, n.name+".kubeconfig")
		ca.kubeconfig(t, kubeconfig, n.name, n, p.nodes)
		o := &operate{log: filepath.Join(dir, n.name+".log"), args: []string{
			"operate", "--config", n.plugin.Config(), "--kubeconfig", kubeconfig, "--node", n.name, "--state-dir", filepath.Join(dir, n.name),
			"--http-address", "", "--interval", "1s", "--settle", "5s", "--recheck", "10m", "--endpoints", strings.Join(p.etcd.URLs(), ","),
		}}
		o.args = append(o.args, append(flags, "--resources", operated, "--http-address", "")...)
		for _, server := range p.nodes {
			o.args = append(o.args, "--server", server.cluster.URL())
		}
		o.start(t)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s:\n%s", o.log, o.proc.Tail(40))
			}
			if err := o.proc.Stop(patience); err != nil {
				t.Error(err)
			}
		})
		operates = append(operates, o)
	}
	return operates
}

// checkEvents checks that the change to Retirable was told as an Event.
func (p *plane) checkEvents(t *testing.T) {
	t.Helper()
	var events struct {
		Items []struct {
			Reason         string `json:"reason"`
			InvolvedObject struct {
				Kind string `json:"kind"`
			} `json:"involvedObject"`
		} `json:"items"`
	}
	if err := p.nodes[0].cluster.Do(t.Context(), http.MethodGet, "/api/v1/namespaces/default/events", nil, &events); err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if e.InvolvedObject.Kind == "KeyRing" && e.Reason == "Retirable" {
			return
		}
	}
	t.Errorf("there is no Event of the KeyRing for Retirable: %+v", events.Items)
}
