package operator

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// reading is a report of an etcd with two objects under the current key, and some under the old one.
func reading(at time.Time, revision int64, current, old string, under int64) *evidence.Report {
	keys := []evidence.Key{{Provider: "kms:v2:hsm-kms", KeyID: current, Objects: 2, DEKs: 1}}
	if under > 0 {
		keys = append(keys, evidence.Key{Provider: "kms:v2:hsm-kms", KeyID: old, Objects: under, DEKs: 1})
	}
	when := at.UTC().Format(time.RFC3339Nano)
	return &evidence.Report{
		Time: when, Revision: revision, Objects: 2 + under, Resources: []evidence.Resource{{Resource: "secrets", Total: 2 + under, Keys: keys}},
		History: []evidence.Resource{}, Restricted: []string{}, UndecodableObjects: []evidence.Problem{}, Findings: []evidence.Finding{},
		Sources: []evidence.Reading{{
			Name: "http://etcd:2379", Revision: revision, Cluster: "cafe", Term: 5, Prefixes: []string{"/registry"}, Unreadable: []string{}, ClusterUIDs: []string{"uid-a"},
			Clock: when, Members: []evidence.Member{{ID: "m1", Revision: revision, RaftIndex: uint64(revision) + 50, RaftTerm: 5}}, //nolint:gosec // small
		}},
	}
}

// A reading that has the old key is not kept as a clean one; one that has not is, for the next process too, and counts only
// for the same etcd.
func TestCleanReadings(t *testing.T) {
	t.Parallel()
	now := time.Now()
	old, current := keyID(t, now.Add(-100*time.Hour)), keyID(t, now.Add(-50*time.Hour))
	a, p := newAPI(t), newPlugin(t, current, old)
	o := newOperator(t, a, p, "n1")
	o.look(t.Context())
	node := o.self.state("n1", "ring")
	o.world.Nodes = []state.Node{node}
	weigh := func(at time.Time, revision, under int64) *state.Etcd {
		t.Helper()
		o.weigh(reading(at, revision, current, old, under), at, node.Current)
		return o.world.Etcd
	}
	if read := weigh(now.Add(-41*time.Hour), 100, 3); read.Under[old] != 3 || read.Under[current] != 2 || read.Left != 3 || read.Findings == "" || read.Key != current {
		t.Errorf("three objects under the old key: %+v", read)
	}
	if err := o.record([]string{old}); err == nil || len(o.kept.times()) != 0 {
		t.Errorf("it was kept as clean: %v", err)
	}
	began := now.Add(-40 * time.Hour)
	if read := weigh(began, 101, 0); read.Under[old] != 0 || read.Left != 0 || read.Findings != "" {
		t.Errorf("nothing under the old key: %+v", read)
	}
	if err := o.record([]string{old}); err != nil {
		t.Fatal(err)
	}
	again, err := openKept(o.cfg.StateDir)
	if err != nil || !again.times()[old].Equal(began) {
		t.Fatalf("after a restart: %v, %v", again.times(), err)
	}
	o.kept = again
	if read := weigh(now, 120, 0); read.Against[old] != "" {
		t.Errorf("a second clean reading: %s", read.Against[old])
	}
	if read := weigh(now, 120, 1); read.Against[old] == "" || read.Under[old] != 1 {
		t.Errorf("an object under the old key later: %+v", read)
	}
	held := reading(now, 121, current, old, 1)
	held.Resources[0].Keys[1].KeyID = old + "/hold"
	if o.weigh(held, now, node.Current); o.world.Etcd.Against[old] == "" || o.world.Etcd.Under[old] != 1 {
		t.Errorf("an object under the old key's hold later: %+v", o.world.Etcd)
	}
	o.world.Settle = 100 * time.Hour // because of a hold
	if read := weigh(now, 120, 0); !strings.Contains(read.Against[old], "100h0m0s (--settle) must lie") {
		t.Errorf("too soon after a hold: %s", read.Against[old])
	}
	o.world.Settle = o.cfg.Settle
	if read := weigh(now, 90, 0); read.Against[old] == "" {
		t.Error("an etcd that was restored counts")
	}
	o.world.Trouble[state.Forget] = state.Trouble{InARow: 1}
	o.do(t.Context(), state.Decision{Do: state.Forget, Keys: []string{old}})
	if _, err := os.Stat(o.kept.path(old)); !errors.Is(err, os.ErrNotExist) || len(o.kept.times()) != 0 || len(o.world.Trouble) != 0 {
		t.Errorf("not forgotten: %v, %v", err, o.world.Trouble)
	}
}

// Where it is known to which cluster the ring belongs, the etcd of another one stops everything before anything is written.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	now := time.Now()
	old, current := keyID(t, now.Add(-100*time.Hour)), keyID(t, now.Add(-50*time.Hour))
	o := newOperator(t, newAPI(t), newPlugin(t, current, old), "n1")
	o.look(t.Context())
	for cluster, want := range map[string]state.Name{"uid-a": state.Active, "": state.Active, "uid-b": state.Blocked} {
		o.cfg.Cluster = cluster
		o.weigh(reading(now, 100, current, old, 3), now, state.Key{ID: current}) // of uid-a
		o.world.Nodes, o.world.Now = []state.Node{o.self.state("n1", "ring")}, now
		o.world.Etcd.Key = current
		d := state.Next(o.world)
		if d.State != want || (d.Do == state.Wait) != (want == state.Blocked) || want == state.Blocked && !strings.Contains(d.Reason, "uid-b") {
			t.Errorf("a ring of %q: %+v", cluster, d)
		}
		o.world.Now = now.Add(state.RetryMost)
		if d = state.Next(o.world); want == state.Blocked && d.Do != state.Read {
			t.Errorf("later: %+v", d)
		}
	}
}

// A proof and a migration are about the current key, and begin only when the API servers are ready.
func TestOptions(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	if err := o.lookAtServers(t.Context()); err != nil || o.world.Servers.NotReady != "" {
		t.Fatalf("%+v, %v", o.world.Servers, err)
	}
	opts, closeAll, err := o.options(t.Context(), state.Key{ID: "ring/x00/0011223344556677"})
	if err != nil {
		t.Fatal(err)
	}
	if err := closeAll(); err != nil {
		t.Error(err)
	}
	if opts.RequiredKey != "ring/x00/0011223344556677" || !opts.Current || opts.ProofOnly || len(opts.Servers) != 1 || len(opts.Sources) != 1 {
		t.Errorf("%+v", opts)
	}
	a.set(func() { a.notReady = true })
	if err := o.lookAtServers(t.Context()); err != nil || o.world.Servers.NotReady == "" {
		t.Errorf("one is not ready: %+v, %v", o.world.Servers, err)
	}
}

// A node that publishes no outage hold any longer shortens nothing: keys retire would refuse what is named too early.
func TestHoldThatIsGone(t *testing.T) {
	t.Parallel()
	now := time.Now()
	old, current := keyID(t, now.Add(-100*time.Hour)), keyID(t, now.Add(-50*time.Hour))
	o := newOperator(t, newAPI(t), newPlugin(t, current, old), "n1")
	o.look(t.Context())
	settle := func(want time.Duration) {
		t.Helper()
		if err := o.see(t.Context()); err != nil || o.world.Settle != want {
			t.Errorf("%s, %v; want %s", o.world.Settle, err, want)
		}
	}
	settle(o.cfg.Settle)
	first := reading(now.Add(-40*time.Hour), 101, current, old, 0)
	first.Sources[0].OutageHold = "48h0m0s"
	o.weigh(first, now.Add(-40*time.Hour), o.world.Nodes[0].Current)
	if err := o.record([]string{old}); err != nil {
		t.Fatal(err)
	}
	settle(72 * time.Hour)
	o.self.Retained = nil // it was retired
	settle(o.cfg.Settle)
}

// The reports of keys that are gone are removed, and Leases that name ever more keys do not fill the disk.
func TestKeptIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Now()
	current := keyID(t, now.Add(-50*time.Hour))
	o := newOperator(t, newAPI(t), newPlugin(t, current), "n1")
	o.look(t.Context())
	record := func(n int) ([]string, error) {
		node := o.self.state("n1", "ring")
		var keys []string
		for range n {
			key := keyID(t, now.Add(-100*time.Hour))
			keys, node.Retained = append(keys, key), append(node.Retained, state.Key{ID: key, Activates: now.Add(-100 * time.Hour)})
		}
		o.world.Nodes = []state.Node{node}
		o.weigh(reading(now.Add(-40*time.Hour), 101, current, "", 0), now.Add(-40*time.Hour), node.Current)
		return keys, o.record(keys)
	}
	for range 3 {
		if keys, err := record(2); err != nil || len(o.kept.files) != 2 || o.kept.files[keys[0]] == nil {
			t.Fatalf("%v, kept %v", err, o.kept.times())
		}
	}
	if again, err := openKept(o.cfg.StateDir); err != nil || len(again.files) != 2 {
		t.Errorf("%v, files %v", err, again.times())
	}
	if _, err := record(maxKept + 1); err == nil || hint.Of(err) == "" || len(o.kept.files) != 0 {
		t.Errorf("%v, kept %d", err, len(o.kept.files))
	}
	if _, err := record(maxKept); err != nil || len(o.kept.files) != maxKept {
		t.Errorf("when that is put right: %v, kept %d", err, len(o.kept.files))
	}
}

// People read of an etcd that does not answer in a KeyRing what the commands print.
func TestWordsOfErrors(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("reading etcd: %w", status.Error(codes.Unavailable, "refused\n"))
	if got, want := words(err), `reading etcd: nobody answers, or not now: refused\x0a`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
