//go:build e2e

package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// Two API servers on one etcd. The one that is behind is found out, whatever the other does, and waited for.
func TestMigrateServers(t *testing.T) {
	t.Parallel()
	bin, err := plugin.FindPrograms()
	must(t, err)
	w := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	encrypts(t, w.cluster, w.hsm, identity)
	other, err := kube.New(kube.Options{Bin: bin.Kube, Dir: filepath.Join(w.dir, "kube2"), Socket: w.plugin.Socket(), Etcd: w.members})
	must(t, err)
	t.Cleanup(func() { must(t, other.Stop()) })
	encrypts(t, other, identity, w.hsm)
	must(t, w.cluster.CreateNamespace(ctx, namespace))
	w.customResource(t)
	w.populate(t, 30, 5, 3)
	m := w.migrator(t, other)

	t.Log("one that has the EncryptionConfiguration of before")
	out, o := m.run(t, 1, "--wait", "0s")
	if out.Rewritten != 0 || !strings.Contains(o.errOut, other.URL()+" writes configmaps as plain text") {
		t.Errorf("outcome: %+v: %s", out, o.errOut)
	}
	for _, p := range out.Servers {
		if p.OK != (p.Server == w.cluster.URL()) {
			t.Errorf("proof: %+v", p)
		}
	}
	encrypts(t, other, w.hsm, identity)
	m.run(t, 0)

	t.Log("after a rotation, one that has not noticed it")
	next := w.rotate(t)
	must(t, w.cluster.RestartAPIServer(ctx))
	out, o = m.run(t, 1, "--wait", "0s")
	if out.Rewritten != 0 || !strings.Contains(o.errOut, "under another key: "+w.keyID) {
		t.Errorf("outcome: %+v: %s", out, o.errOut)
	}

	t.Log("it is waited for, and what it did write meanwhile is rewritten")
	p := w.start(t, m.args("--rate", "500", "-o", "json"))
	if err := p.cmd.Wait(); err != nil || !strings.Contains(p.errOut.String(), "waiting up to 5m0s: ") {
		t.Errorf("%v: %s", err, p.errOut.String())
	}
	outcome{out: p.out.String()}.into(t, &out)
	if out.RequiredKey != next || out.Rewritten < 30 {
		t.Errorf("outcome: %+v", out)
	}

	t.Log("one that ends in the middle is done without")
	next = w.rotate(t)
	must(t, w.cluster.RestartAPIServer(ctx))
	must(t, other.RestartAPIServer(ctx))
	p = w.start(t, m.args("--rate", "15", "-o", "json"))
	w.waitUnder(t, next, 10)
	other.APIServer().Kill()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, p.errOut.String())
	}
	var alone migration
	outcome{out: p.out.String()}.into(t, &alone)
	if alone.Failed != 0 || alone.Rewritten < 30 || len(alone.Report.Findings) != 0 {
		t.Errorf("outcome: %+v", alone)
	}
}
