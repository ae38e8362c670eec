//go:build e2e

package e2e

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// A rotation in which a real kube-controller-manager rewrites the Secrets, under the roles that are printed. Custom resources are
// rewritten by operate itself. Nothing but the KeyRing is left.
func TestOperateSVM(t *testing.T) {
	t.Parallel()
	bin, err := kubebin.Node(t.Context(), os.Stderr, true)
	if errors.Is(err, kubebin.ErrNotCached) {
		t.Skip("kube-controller-manager is not built yet: make cluster does that")
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	ca := newAuthority(t, dir)
	p := newSmallPlane(t, dir, bin.Server, "--client-ca-file="+ca.file)
	cluster := p.nodes[0].cluster
	if err := cluster.DefineWidgets(t.Context()); err != nil {
		t.Fatal(err)
	}
	startControllerManager(t, dir, bin.Node, cluster)
	p.fill(t, 300)
	applyPrinted(t, p.nodes[0], "operate-rbac.yaml")
	applyPrinted(t, p.nodes[0], "keyring-crd.yaml")
	tr, widgets := startTraffic(t, p.nodes), p.writeWidgets(t)
	old, err := p.nodes[0].plugin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	operate := p.startOperates(t, dir, ca, "--engine", "svm")[0]
	p.waitState(t, "Steady", 2*patience, nil)
	if _, err := p.nodes[0].plugin.RotateKey(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	done := p.waitState(t, "Retirable", 6*patience, nil)
	tr.check(t)
	widgets(t)
	if len(done.Retirable) != 1 || done.Retirable[0] != old.KeyID || done.ObjectsLeft != 0 {
		t.Errorf("the KeyRing says %+v", done)
	}
	log, err := os.ReadFile(operate.log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), `"a StorageVersionMigration has succeeded; etcd is read to see what is left","resource":"secrets"`) {
		t.Error("no StorageVersionMigration of secrets has succeeded")
	}
	var left struct {
		Items []struct{ Metadata kube.Meta }
	}
	if err := cluster.Do(t.Context(), http.MethodGet, "/apis/storagemigration.k8s.io/v1/storageversionmigrations", nil, &left); err != nil {
		t.Fatal(err)
	}
	if len(left.Items) > 0 {
		t.Errorf("these are left: %+v", left.Items)
	}
}

// newSmallPlane is a control plane of one node on an etcd of one member, with a key.
func newSmallPlane(t *testing.T, dir string, bin kubebin.Set, args ...string) *plane {
	t.Helper()
	program, err := plugin.FindProgram()
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{}
	if p.etcd, err = kube.NewMembers(bin, filepath.Join(dir, "etcd"), 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop(t) })
	n := &node{name: "n1"}
	if n.token, err = softhsm.New(t.Context(), filepath.Join(dir, "hsm"), "e2e", ""); err != nil {
		t.Fatal(err)
	}
	if n.plugin, err = plugin.New(plugin.Options{Bin: program, Dir: filepath.Join(dir, "plugin"), Token: n.token, Extra: quick}); err != nil {
		t.Fatal(err)
	}
	n.cluster, err = kube.New(kube.Options{Bin: bin, Dir: filepath.Join(dir, "kube"), Socket: n.plugin.Socket(), Etcd: p.etcd, Resources: strings.Split(operated, ","), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	p.nodes = []*node{n}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	_, keyErr := n.plugin.CreateKey(ctx)
	_, serveErr := n.plugin.Serve()
	if err := errors.Join(keyErr, serveErr, p.etcd.Launch(0), n.cluster.StartAPIServer(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.etcd.WaitReady(ctx), n.cluster.WaitReady(ctx), n.cluster.CreateNamespace(ctx, namespace)); err != nil {
		t.Fatal(err)
	}
	return p
}

// startControllerManager runs what carries out StorageVersionMigrations: it goes by what the garbage collector has seen.
func startControllerManager(t *testing.T, dir string, bin kubebin.Set, cluster *kube.Cluster) {
	t.Helper()
	kubeconfig := filepath.Join(dir, "manager.kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig); err != nil {
		t.Fatal(err)
	}
	p, err := proc.Start(proc.Spec{
		Name: "kube-controller-manager", Path: bin.Path("kube-controller-manager"), Log: filepath.Join(dir, "manager.log"),
		Args: []string{"--kubeconfig=" + kubeconfig, "--controllers=garbage-collector-controller,storage-version-migrator-controller", "--leader-elect=false", "--secure-port=0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kube-controller-manager:\n%s", p.Tail(40))
		}
		if err := p.Stop(patience); err != nil {
			t.Error(err)
		}
	})
}
