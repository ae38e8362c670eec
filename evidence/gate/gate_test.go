package gate_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

const (
	oldKey      = "ring/x01/0011223344556677"
	newKey      = "ring/x02/8899aabbccddeeff"
	conflicting = "ring/x01/ffeeddccbbaa9988" // the version of oldKey with other material
)

func at(hours float64) time.Time {
	return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(hours * float64(time.Hour)))
}

// clean is a report in which everything is under newKey.
func clean(when time.Time, revision int64) *evidence.Report {
	return &evidence.Report{
		Time: when.Format(time.RFC3339Nano), Revision: revision, Objects: 12, Plaintext: 2,
		Resources: []evidence.Resource{
			{Resource: "events", Total: 2, Plaintext: 2, Keys: []evidence.Key{}},
			{Resource: "secrets", Total: 10, Keys: []evidence.Key{{Provider: "kms:v2:hsm-kms", KeyID: newKey, Objects: 10, DEKs: 1}}},
		},
		History: []evidence.Resource{}, Restricted: []string{}, UndecodableObjects: []evidence.Problem{}, Findings: []evidence.Finding{},
		Sources: []evidence.Reading{{
			Name: "http://etcd:2379", Revision: revision, Cluster: "cafe", Term: 5, Prefixes: []string{"/registry"}, Unreadable: []string{}, ClusterUIDs: []string{"uid-a"},
			Clock: when.Format(time.RFC3339Nano), Members: []evidence.Member{member("m1", revision), member("m2", revision)},
		}},
	}
}

// member is one whose raft log has 50 entries more than there are revisions.
func member(id string, revision int64) evidence.Member {
	return evidence.Member{ID: id, Revision: revision, RaftIndex: uint64(revision) + 50, RaftTerm: 5} //nolint:gosec // small
}

func snapshot() *evidence.Report {
	r := clean(at(30), 90)
	r.Sources = []evidence.Reading{{Name: "backup.db", Revision: 90, SHA256: strings.Repeat("ab", 32), Prefixes: []string{"/registry"}, Unreadable: []string{}, ClusterUIDs: []string{"uid-a"}}}
	r.History = []evidence.Resource{{Resource: "secrets", Total: 1, Keys: []evidence.Key{{Provider: "kms:v2:hsm-kms", KeyID: newKey, Objects: 1}}}}
	return r
}

// sound is a case that nothing speaks against: the successor became current at hour 0, the report was made at hour 1, and it is hour 26.
func sound() *gate.Case {
	return &gate.Case{
		KeyID: oldKey, Successor: at(0), Others: []string{conflicting, newKey}, Cluster: "uid-a", Settle: gate.DefaultSettle, FileName: "report.json",
		File: &gate.File{Report: clean(at(1), 100), Time: at(1)}, Own: clean(at(26), 120), Snapshots: []*evidence.Report{snapshot()},
	}
}

func add(r *evidence.Report, keyID string, n int64) {
	r.Resources = append(r.Resources, evidence.Resource{Resource: "widgets.example.com", Total: n, Keys: []evidence.Key{{Provider: "kms:v2:other-name", KeyID: keyID, Objects: n}}})
	r.Objects += n
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*gate.Case)
		want   []string // parts of the reasons, in order
	}{
		"nothing speaks against it":             {func(*gate.Case) {}, nil},
		"exactly the settling time":             {func(c *gate.Case) { c.Own.Time = at(25).Format(time.RFC3339Nano) }, nil},
		"the conflicting's objects are others'": {func(c *gate.Case) { add(c.File.Report, conflicting, 3); add(c.Own, conflicting, 3) }, nil},
		"no settling time, at once": {func(c *gate.Case) {
			c.Settle, c.Own.Time = 0, at(1).Format(time.RFC3339Nano)
		}, nil},
		"no snapshot":               {func(c *gate.Case) { c.Snapshots = nil }, nil},
		"nothing was written since": {func(c *gate.Case) { c.Own.Sources[0].Revision = 100 }, nil},

		"under it in the file": {func(c *gate.Case) { add(c.File.Report, oldKey, 3) }, []string{"report.json: 3 objects under " + oldKey + " (widgets.example.com 3)"}},
		"under it now":         {func(c *gate.Case) { add(c.Own, oldKey, 1) }, []string{"etcd now: 1 object under " + oldKey + " (widgets.example.com 1)"}},
		"under its hold in the file": {func(c *gate.Case) { add(c.File.Report, oldKey+"/hold", 3) }, []string{
			"report.json: 3 objects under " + oldKey + " (widgets.example.com 3, of which 3 under " + oldKey + "/hold)",
		}},
		"under it and its hold now": {func(c *gate.Case) {
			add(c.Own, oldKey, 1)
			keys := &c.Own.Resources[len(c.Own.Resources)-1].Keys
			*keys = append(*keys, evidence.Key{Provider: "kms:v2:hsm-kms", KeyID: oldKey + "/hold", Objects: 2})
		}, []string{"etcd now: 3 objects under " + oldKey + " (widgets.example.com 3, of which 2 under " + oldKey + "/hold)"}},
		"a snapshot needs its hold": {func(c *gate.Case) { add(c.Snapshots[0], oldKey+"/hold", 4) }, []string{"the snapshot backup.db: 4 objects under"}},
		"a snapshot's past needs its hold": {func(c *gate.Case) {
			c.Snapshots[0].History[0].Keys[0] = evidence.Key{Provider: "kms:v2:hsm-kms", KeyID: oldKey + "/hold", Objects: 7}
		}, []string{"the snapshot backup.db: 7 past revisions under " + oldKey + " (secrets 7, of which 7 under " + oldKey + "/hold)"}},
		"a hold of another key": {func(c *gate.Case) { add(c.File.Report, newKey+"/hold", 3); add(c.Own, newKey+"/hold", 3) }, nil},
		"holds alone show that it is the ring's etcd": {func(c *gate.Case) {
			for _, r := range []*evidence.Report{c.File.Report, c.Own} {
				r.Resources[1].Keys[0].KeyID = newKey + "/hold"
			}
		}, nil},
		"a text that is nearly its hold": {func(c *gate.Case) { add(c.Own, oldKey+"/hold/hold", 3) }, nil},
		"undecodable in the file": {func(c *gate.Case) {
			c.File.Report.Undecodable = 1
		}, []string{"report.json: 1 object undecodable"}},
		"undecodable now":        {func(c *gate.Case) { c.Own.Undecodable = 2 }, []string{"etcd now: 2 objects undecodable"}},
		"an empty file":          {func(c *gate.Case) { c.File.Report.Objects = 0 }, []string{"report.json: no object at all"}},
		"an empty etcd":          {func(c *gate.Case) { c.Own.Objects = 0 }, []string{"etcd now: no object at all"}},
		"of some resources":      {func(c *gate.Case) { c.File.Report.Restricted = []string{"secrets"} }, []string{"restricted to secrets"}},
		"no successor's time":    {func(c *gate.Case) { c.Successor = time.Time{} }, []string{"has an activation time"}},
		"before the successor":   {func(c *gate.Case) { c.Successor = at(2) }, []string{"before the key that followed"}},
		"at its very activation": {func(c *gate.Case) { c.Successor = at(1) }, []string{"before the key that followed"}},
		"from the future":        {func(c *gate.Case) { c.File.Time = at(27) }, []string{"from the future"}},
		"too soon":               {func(c *gate.Case) { c.Own.Time = at(24.99).Format(time.RFC3339Nano) }, []string{"23h59m24s ago, and 24h0m0s (--settle)"}},
		"own time is none":       {func(c *gate.Case) { c.Own.Time = "now" }, []string{"is not one"}},
		"another cluster": {func(c *gate.Case) { c.Own.Sources[0].Cluster = "beef" }, []string{
			"cluster cafe below /registry, which was not read now", "cluster beef below /registry was read now and is not in",
		}},
		"another prefix": {func(c *gate.Case) { c.Own.Sources[0].Prefixes = []string{"/kubernetes"} }, []string{
			"below /registry, which was not read now", "below /kubernetes was read now",
		}},
		"fewer prefixes": {func(c *gate.Case) { c.File.Report.Sources[0].Prefixes = []string{"/registry", "/events"} }, []string{
			"below /events, /registry, which was not", "below /registry was read now",
		}},
		"an etcd less": {func(c *gate.Case) {
			c.File.Report.Sources = append(c.File.Report.Sources, evidence.Reading{Cluster: "e", Revision: 1, Prefixes: []string{"/registry"}})
		}, []string{"cluster e below /registry, which was not read now"}},
		"an etcd more": {func(c *gate.Case) {
			c.Own.Sources = append(c.Own.Sources, evidence.Reading{Cluster: "e", Revision: 1, Prefixes: []string{"/registry"}})
		}, []string{"cluster e below /registry was read now and is not in"}},
		"went back in time":       {func(c *gate.Case) { c.Own.Sources[0].Revision = 99 }, []string{"is at revision 99, and was at 100"}},
		"its raft term went back": {func(c *gate.Case) { c.Own.Sources[0].Term = 2 }, []string{"is at raft term 2, and was at 5"}},
		"elections meanwhile":     {func(c *gate.Case) { c.Own.Sources[0].Term = 9 }, nil},
		"nothing of the ring": {func(c *gate.Case) { c.Others = []string{conflicting} }, []string{
			"report.json: no object is under any key of the ring", "etcd now: no object is under any key of the ring",
		}},
		"a ring of one key": {func(c *gate.Case) { c.Others = nil }, []string{"report.json: no object is under any key", "etcd now: no object is under any key"}},
		"encrypted beside the prefix": {func(c *gate.Case) {
			c.Own.Sources[0].Elsewhere, c.Snapshots[0].Sources[0].Elsewhere = 1, 2
		}, []string{"etcd now: 1 encrypted object of an API server that are not below /registry", "backup.db: 2 encrypted objects of"}},
		"encrypted beside the prefix then": {func(c *gate.Case) { c.File.Report.Sources[0].Elsewhere = 1 }, []string{"report.json: 1 encrypted object"}},
		"one of two readings of a cluster went back": {func(c *gate.Case) {
			c.Own.Sources = append(c.Own.Sources, evidence.Reading{Cluster: "cafe", Revision: 99, Term: 5, Prefixes: []string{"/registry"}})
		}, []string{"is at revision 99, and was at 100"}},
		"a snapshot needs it": {func(c *gate.Case) { add(c.Snapshots[0], oldKey, 4) }, []string{"the snapshot backup.db: 4 objects under"}},
		"a snapshot's past needs it": {func(c *gate.Case) {
			c.Snapshots[0].History[0].Keys[0] = evidence.Key{Provider: "kms:v2:hsm-kms", KeyID: oldKey, Objects: 7}
		}, []string{"the snapshot backup.db: 7 past revisions under " + oldKey + " (secrets 7)"}},
		"a snapshot is undecodable":        {func(c *gate.Case) { c.Snapshots[0].Undecodable = 1 }, []string{"backup.db: 1 object undecodable"}},
		"a snapshot's past is undecodable": {func(c *gate.Case) { c.Snapshots[0].History[0].Undecodable = 1 }, []string{"backup.db: 1 past revision undecodable"}},
		"a snapshot of nothing":            {func(c *gate.Case) { c.Snapshots[0].Objects = 0 }, []string{"backup.db: no object at all"}},
		"a snapshot without a hash":        {func(c *gate.Case) { c.Snapshots[0].Sources[0].SHA256 = "" }, []string{"no integrity hash"}},
		"the second snapshot needs it": {func(c *gate.Case) {
			c.Snapshots = append(c.Snapshots, snapshot())
			c.Snapshots[1].Sources[0].Name = "older.db"
			add(c.Snapshots[1], oldKey, 1)
		}, []string{"the snapshot older.db: 1 object under"}},
		"everything at once": {func(c *gate.Case) {
			add(c.File.Report, oldKey, 1)
			add(c.Own, oldKey, 1)
			add(c.Snapshots[0], oldKey, 1)
			c.Own.Sources[0].Revision = 1
			c.Settle = 100 * time.Hour
		}, []string{"report.json: 1 object", "--settle", "was restored", "etcd now: 1 object", "backup.db: 1 object"}},
	} {
		c := sound()
		test.change(c)
		got := c.Judge()
		if len(got) != len(test.want) {
			t.Errorf("%s: %d reasons, want %d: %q", name, len(got), len(test.want), got)
			continue
		}
		for i, want := range test.want {
			if !strings.Contains(got[i].Reason, want) {
				t.Errorf("%s: reason %d is %q, want it to have %q", name, i, got[i].Reason, want)
			}
			if got[i].Hint == "" && name != "own time is none" {
				t.Errorf("%s: no hint with %q", name, got[i].Reason)
			}
		}
	}
}
