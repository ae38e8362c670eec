//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
)

// restorable is an etcd of one member, with the tools to save and restore it.
type restorable struct {
	t       *testing.T
	ctx     context.Context
	bin     plugin.Programs
	dir     string
	members *kube.Members
}

func newRestorable(t *testing.T) *restorable {
	t.Helper()
	bin, err := plugin.FindPrograms()
	must(t, err)
	for _, tool := range []string{"etcdctl", "etcdutl"} {
		if _, err := os.Stat(bin.Kube.Path(tool)); err != nil {
			t.Skip("these programs come without " + tool)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	r := &restorable{t: t, ctx: ctx, bin: bin, dir: t.TempDir()}
	r.members, err = kube.NewMembers(bin.Kube, r.dir, 1)
	must(t, err)
	t.Cleanup(func() { _ = r.members.Stop() })
	r.launch()
	return r
}

func (r *restorable) call(args ...string) []byte {
	r.t.Helper()
	out, err := exec.CommandContext(r.ctx, args[0], args[1:]...).CombinedOutput() //nolint:gosec // our own programs
	if err != nil {
		r.t.Fatalf("%s: %v: %s", args, err, out)
	}
	return out
}

func (r *restorable) etcdctl(args ...string) {
	r.t.Helper()
	r.call(append([]string{r.bin.Kube.Path("etcdctl"), "--endpoints", r.members.URLs()[0]}, args...)...)
}

func (r *restorable) launch() {
	r.t.Helper()
	must(r.t, r.members.Launch(0))
	must(r.t, r.members.WaitReady(r.ctx))
}

func (r *restorable) put(n int) {
	r.t.Helper()
	for range n {
		r.etcdctl("put", "/registry/secrets/a/b", "v")
	}
}

// save saves a snapshot.
func (r *restorable) save(name string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	r.etcdctl("snapshot", "save", path)
	return path
}

// restore takes what was saved in place of the data.
func (r *restorable) restore(saved string, flags ...string) {
	r.t.Helper()
	must(r.t, r.members.Stop())
	must(r.t, os.RemoveAll(filepath.Join(r.dir, "etcd")))
	must(r.t, r.members.Restore(r.ctx, saved, flags...))
}

// said is what a report says of its only source.
type said struct {
	Cluster        string
	Revision, Term int64
	SHA256         string
	Members        []struct {
		ID                  string
		RaftIndex, RaftTerm int64
	}
}

func (r *restorable) report(args ...string) (source said, objects int) {
	r.t.Helper()
	var report struct {
		Objects int
		Sources []said
	}
	outcome{out: string(r.call(append([]string{r.bin.HSMKMS, "etcd", "report", "-o", "json"}, args...)...))}.into(r.t, &report)
	return report.Sources[0], report.Objects
}

// An etcd that is restored in its place has the same cluster id, and may be written past any revision: its raft term and
// index begin again, which a report tells.
func TestRestoredInPlace(t *testing.T) {
	t.Parallel()
	r := newRestorable(t)
	r.put(2)
	saved := r.save("saved.db")
	r.members.Kill(0) // an election
	r.launch()
	r.put(20)
	before, _ := r.report("--endpoints", r.members.URLs()[0])
	r.restore(saved)
	r.launch()
	r.put(22)
	after, _ := r.report("--endpoints", r.members.URLs()[0])
	t.Logf("before %+v, after %+v", before, after)
	if after.Cluster != before.Cluster || after.Revision <= before.Revision || after.Term >= before.Term {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if len(after.Members) != 1 || len(before.Members) != 1 || after.Members[0].ID != before.Members[0].ID || after.Members[0].RaftTerm >= before.Members[0].RaftTerm {
		t.Errorf("members before %+v, after %+v", before.Members, after.Members)
	}
}

// An etcd that is restored in its place without an election before has the same term: its members' raft index is lower.
func TestRestoredWithEqualTerm(t *testing.T) {
	t.Parallel()
	r := newRestorable(t)
	r.put(2)
	saved := r.save("saved.db")
	r.put(20)
	before, _ := r.report("--endpoints", r.members.URLs()[0])
	r.restore(saved, "--bump-revision", "1000", "--mark-compacted")
	r.launch()
	after, _ := r.report("--endpoints", r.members.URLs()[0])
	if after.Cluster != before.Cluster || after.Revision <= before.Revision || after.Term != before.Term ||
		len(after.Members) != 1 || len(before.Members) != 1 || after.Members[0].RaftIndex >= before.Members[0].RaftIndex {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// A snapshot restored with a bumped revision, as etcd advises for Kubernetes, is whole, and so is each later backup.
func TestBumpedRevision(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]func(*restorable){
		"a put":      func(r *restorable) { r.put(1) },
		"a deletion": func(r *restorable) { r.etcdctl("del", "/registry/secrets/a/c") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRestorable(t)
			r.put(3)
			r.etcdctl("put", "/registry/secrets/a/c", "v")
			last(r)
			before, objects := r.report("--endpoints", r.members.URLs()[0])
			r.restore(r.save("saved.db"), "--bump-revision", "1000000000", "--mark-compacted")
			database := filepath.Join(r.dir, "etcd", "member", "snap", "db")
			check := func(revision int64, wanted int, args ...string) {
				t.Helper()
				source, got := r.report(args...)
				if source.Revision != revision || got != wanted {
					t.Errorf("%v: %d objects at revision %d, want %d at %d", args, got, source.Revision, wanted, revision)
				}
			}
			check(before.Revision+1e9, objects, "--snapshot", database)
			r.launch()
			check(before.Revision+1e9, objects, "--endpoints", r.members.URLs()[0])
			check(before.Revision+1e9, objects, "--snapshot", r.save("later.db"))
			r.etcdctl("put", "/registry/secrets/a/d", "v")
			r.put(1)
			check(before.Revision+1e9+2, objects+1, "--snapshot", r.save("later still.db"))
			r.etcdctl("compact", strconv.FormatInt(before.Revision+1e9+2, 10), "--physical")
			check(before.Revision+1e9+2, objects+1, "--snapshot", r.save("compacted.db"))
		})
	}
}
