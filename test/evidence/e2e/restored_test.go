//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/kube"
)

// An etcd that is restored in its place has the same cluster id, and may be written past any revision: its raft term
// begins anew, which a report tells.
func TestRestoredInPlace(t *testing.T) {
	t.Parallel()
	bin, err := findPrograms()
	must(t, err)
	etcdctl := bin.kube.Path("etcdctl")
	if _, err := os.Stat(etcdctl); err != nil {
		t.Skip("these programs come without etcdctl")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	members, err := kube.NewMembers(bin.kube, dir, 1)
	must(t, err)
	t.Cleanup(func() { _ = members.Stop() })
	call := func(args ...string) []byte {
		t.Helper()
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
		return out
	}
	launch := func() {
		t.Helper()
		must(t, members.Launch(0))
		must(t, members.WaitReady(ctx))
	}
	put := func(n int) {
		for range n {
			call(etcdctl, "--endpoints", members.URLs()[0], "put", "/registry/secrets/a/b", "v")
		}
	}
	read := func() (source struct {
		Cluster        string
		Revision, Term int64
	}) {
		t.Helper()
		var r struct {
			Sources []struct {
				Cluster        string
				Revision, Term int64
			}
		}
		outcome{out: string(call(bin.hsmkms, "etcd", "report", "-o", "json", "--endpoints", members.URLs()[0]))}.into(t, &r)
		return r.Sources[0]
	}
	launch()
	put(2)
	saved := filepath.Join(dir, "saved.db")
	call(etcdctl, "--endpoints", members.URLs()[0], "snapshot", "save", saved)
	members.Kill(0) // an election
	launch()
	put(1)
	before := read()
	must(t, members.Stop())
	must(t, os.RemoveAll(filepath.Join(dir, "etcd")))
	must(t, members.Restore(ctx, saved))
	launch()
	put(5)
	after := read()
	t.Logf("before %+v, after %+v", before, after)
	if after.Cluster != before.Cluster || after.Revision <= before.Revision || after.Term >= before.Term {
		t.Errorf("before %+v, after %+v", before, after)
	}
}
