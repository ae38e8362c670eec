package gate_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

// judged compares the reasons with the parts that are wanted of them, in order. Every reason has a hint.
func judged(t *testing.T, name string, c *gate.Case, want []string) {
	t.Helper()
	got := c.Judge()
	if len(got) != len(want) {
		t.Errorf("%s: %d reasons, want %d: %q", name, len(got), len(want), got)
		return
	}
	for i := range want {
		if !strings.Contains(got[i].Reason, want[i]) || got[i].Hint == "" {
			t.Errorf("%s: reason %d is %q, want it to have %q, and a hint", name, i, got[i], want[i])
		}
	}
}

// A restored etcd may have the cluster id, the raft term and a higher revision than before. Its raft log began again.
func TestRestoredEtcd(t *testing.T) {
	t.Parallel()
	now := func(c *gate.Case) *evidence.Reading { return &c.Own.Sources[0] }
	says := func(id string, revision int64, index uint64) evidence.Member {
		return evidence.Member{ID: id, Revision: revision, RaftIndex: index, RaftTerm: 5}
	}
	for name, test := range map[string]struct {
		change func(*gate.Case)
		want   []string
	}{
		"nothing was written since": {func(c *gate.Case) { c.Own = clean(at(26), 100) }, nil},
		"the index fell": {func(c *gate.Case) { now(c).Members[0].RaftIndex = 5 }, []string{
			"its member m1 is at raft index 5, and was at 150 in the report report.json: it was restored meanwhile",
		}},
		"the index fell, and the term is higher": {func(c *gate.Case) {
			now(c).Members[1].RaftIndex, now(c).Members[1].RaftTerm = 5, 6
		}, []string{"its member m2 is at raft index 5"}},
		"a member's term fell": {func(c *gate.Case) { now(c).Members[0].RaftTerm = 4 }, []string{"its member m1 is at raft term 4, and was at 5"}},
		"written past the old index": {func(c *gate.Case) {
			// From a snapshot at revision 90: the log began at 5, and 100 revisions followed.
			c.Own.Sources[0].Revision, c.Own.Revision = 190, 190
			now(c).Members = []evidence.Member{says("m1", 190, 160), says("m2", 190, 160)}
		}, []string{
			"its member m1 is at raft index 160 with revision 190, and was at 150 with 100 in the report report.json: its raft log began again",
			"its member m2 is at raft index 160",
		}},
		"the two numbers of one answer are a moment apart": {func(c *gate.Case) { now(c).Members = []evidence.Member{says("m1", 120, 165)} }, nil},
		"a member less": {func(c *gate.Case) { now(c).Members = now(c).Members[:1] }, nil},
		"a member more": {func(c *gate.Case) { now(c).Members = append(now(c).Members, says("m3", 119, 170)) }, nil},
		"a new member that has less than there was": {func(c *gate.Case) {
			now(c).Members = append(now(c).Members, says("m3", 4, 54))
		}, []string{"its member m3 is at raft index 54, and was at 150"}},
		"a new member whose log began again": {func(c *gate.Case) {
			now(c).Members = append(now(c).Members, says("m3", 190, 160))
		}, []string{"its member m3 is at raft index 160 with revision 190"}},
		"all members are others": {func(c *gate.Case) {
			now(c).Members = []evidence.Member{says("m8", 120, 170)}
		}, []string{"none of the members in the report report.json answers now"}},
		"no member said anything now":  {func(c *gate.Case) { now(c).Members = nil }, []string{"no member says how far its raft log is"}},
		"no member said anything then": {func(c *gate.Case) { c.File.Report.Sources[0].Members = nil }, []string{"no member says how far its raft log is"}},
	} {
		c := sound()
		test.change(c)
		judged(t, name, c, test.want)
	}
}

// A range that was not read, and a store that does not say which it is, are no evidence unless somebody answers for them.
func TestNotRead(t *testing.T) {
	t.Parallel()
	hidden := []string{"../registry/", "/registry0.."}
	kine := func(c *gate.Case) {
		for _, r := range []*evidence.Report{c.File.Report, c.Own} {
			r.Sources[0].Cluster, r.Sources[0].Members, r.Sources[0].Term = "0", nil, 0
		}
	}
	for name, test := range map[string]struct {
		change func(*gate.Case)
		want   []string
	}{
		"ranges that may not be read": {func(c *gate.Case) {
			c.Own.Sources[0].Unreadable, c.File.Report.Sources[0].Unreadable = hidden, hidden[:1]
		}, []string{
			"report.json: the keys ../registry/ could not be read", "etcd now: the keys ../registry/ could not be read", "etcd now: the keys /registry0.. could not be read",
		}},
		"one of two is accepted": {func(c *gate.Case) {
			c.Own.Sources[0].Unreadable, c.Accepted.Unreadable = hidden, hidden[1:]
		}, []string{"etcd now: the keys ../registry/ could not be read"}},
		"both are accepted": {func(c *gate.Case) {
			c.Own.Sources[0].Unreadable, c.Accepted.Unreadable = hidden, hidden
		}, nil},
		"another range is accepted": {func(c *gate.Case) {
			c.Own.Sources[0].Unreadable, c.Accepted.Unreadable = hidden[:1], []string{"/"}
		}, []string{"etcd now: the keys ../registry/"}},
		"a store without identity": {kine, []string{
			"report.json: the store at http://etcd:2379 does not identify itself (cluster id 0, as kine does)", "etcd now: the store at http://etcd:2379",
		}},
		"accepted": {func(c *gate.Case) { kine(c); c.Accepted.Unidentified = true }, nil},
		"accepted, and at another address": {func(c *gate.Case) {
			kine(c)
			c.Accepted.Unidentified, c.Own.Sources[0].Name = true, "http://other:2379"
		}, []string{"the store at http://etcd:2379 below /registry, which was not read now", "the store at http://other:2379 below /registry was read now"}},
		"accepted, and its revision fell": {func(c *gate.Case) {
			kine(c)
			c.Accepted.Unidentified, c.Own.Sources[0].Revision = true, 9
		}, []string{"is at revision 9, and was at 100"}},
	} {
		c := sound()
		test.change(c)
		judged(t, name, c, test.want)
	}
}

// A ring belongs to one cluster.
func TestClusters(t *testing.T) {
	t.Parallel()
	uids := func(c *gate.Case, then, now []string) {
		c.File.Report.Sources[0].ClusterUIDs, c.Own.Sources[0].ClusterUIDs = then, now
	}
	a, b, unknown := []string{"uid-a"}, []string{"uid-b"}, []string{evidence.UnknownCluster}
	for name, test := range map[string]struct {
		change func(*gate.Case)
		want   []string
	}{
		"another cluster's etcd": {func(c *gate.Case) { uids(c, b, b) }, []string{"the ring belongs to the cluster uid-a (UID of its namespace kube-system), and etcd holds the cluster uid-b"}},
		"nobody may accept that": {func(c *gate.Case) { uids(c, b, b); c.Accepted.SoleCluster = true }, []string{"the ring belongs to the cluster uid-a"}},
		"two clusters in one":    {func(c *gate.Case) { uids(c, a, []string{"uid-a", "uid-b"}) }, []string{"the report report.json is of the cluster uid-a, and etcd holds the cluster uid-a, uid-b now", "the ring belongs to the cluster uid-a"}},
		"the file is another's":  {func(c *gate.Case) { uids(c, b, a) }, []string{"the report report.json is of the cluster uid-b, and etcd holds the cluster uid-a now"}},
		"not bound":              {func(c *gate.Case) { c.Cluster = "" }, []string{"the ring is bound to no cluster"}},
		"not bound, accepted":    {func(c *gate.Case) { c.Cluster, c.Accepted.SoleCluster = "", true }, nil},
		"not bound, accepted, and two clusters": {func(c *gate.Case) {
			uids(c, []string{"uid-a", "uid-b"}, []string{"uid-a", "uid-b"})
			c.Cluster, c.Accepted.SoleCluster = "", true
		}, []string{"etcd holds several clusters: uid-a, uid-b"}},
		"namespaces are encrypted":           {func(c *gate.Case) { uids(c, unknown, unknown) }, []string{"whether this is its etcd is not clear"}},
		"namespaces are encrypted, accepted": {func(c *gate.Case) { uids(c, unknown, unknown); c.Accepted.SoleCluster = true }, nil},
		"one of two is encrypted":            {func(c *gate.Case) { uids(c, a, append(unknown, "uid-a")) }, []string{"whether this is its etcd is not clear"}},
		"no namespaces":                      {func(c *gate.Case) { uids(c, nil, nil) }, []string{"whether this is its etcd is not clear"}},
	} {
		c := sound()
		test.change(c)
		judged(t, name, c, test.want)
	}
}

// The clock of this machine may have been set forward between the two reports: the nodes' clocks did not go with it.
func TestNodesClocks(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		clock string
		want  []string
	}{
		"they agree":         {at(26).Format(time.RFC3339Nano), nil},
		"within the renewal": {at(24.95).Format(time.RFC3339Nano), nil},
		"unknown":            {"", nil},
		"an hour":            {at(2).Format(time.RFC3339Nano), []string{"by the Leases of the control-plane nodes 1h0m0s lie between the report report.json and now"}},
	} {
		c := sound()
		c.Own.Sources[0].Clock = test.clock
		judged(t, name, c, test.want)
	}
}

// pendingKey is a case that nothing speaks against: the key becomes current at hour 48, and it is hour 26.
func pendingKey() *gate.Case {
	return &gate.Case{
		KeyID: oldKey, Pending: &gate.Pending{Activation: at(48), Margin: 5 * time.Minute}, Others: []string{newKey}, Cluster: "uid-a", Own: clean(at(26), 120),
	}
}

// A pending key may be in use: a node's clock may be ahead.
func TestPending(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*gate.Case)
		want   []string
	}{
		"nothing speaks against it": {func(*gate.Case) {}, nil},
		"something is under it":     {func(c *gate.Case) { add(c.Own, oldKey, 1) }, []string{"etcd now: 1 object under " + oldKey + " (widgets.example.com 1)"}},
		"something may be":          {func(c *gate.Case) { c.Own.Undecodable = 1 }, []string{"etcd now: 1 object undecodable"}},
		"beside the prefix":         {func(c *gate.Case) { c.Own.Sources[0].Elsewhere = 1 }, []string{"etcd now: 1 encrypted object"}},
		"not everything was read":   {func(c *gate.Case) { c.Own.Sources[0].Unreadable = []string{"/a../b"} }, []string{"the keys /a../b could not be read"}},
		"an empty etcd": {func(c *gate.Case) {
			c.Own = clean(at(26), 120)
			c.Own.Objects, c.Own.Resources = 0, nil
		}, []string{"no object at all"}},
		"an etcd of others":  {func(c *gate.Case) { c.Others = nil }, []string{"no object is under any key of the ring"}},
		"another cluster":    {func(c *gate.Case) { c.Cluster = "uid-b" }, []string{"the ring belongs to the cluster uid-b"}},
		"not bound":          {func(c *gate.Case) { c.Cluster = "" }, []string{"the ring is bound to no cluster"}},
		"a clock is ahead":   {func(c *gate.Case) { c.Own.Sources[0].Clock = at(49).Format(time.RFC3339Nano) }, []string{"by it the key became current 1h0m0s before"}},
		"a clock is close":   {func(c *gate.Case) { c.Own.Sources[0].Clock = at(47.95).Format(time.RFC3339Nano) }, []string{"by it the key becomes current in 3m0s, and within 5m0s"}},
		"no clock is known":  {func(c *gate.Case) { c.Own.Sources[0].Clock = "" }, nil},
		"a clock far behind": {func(c *gate.Case) { c.Own.Sources[0].Clock = at(1).Format(time.RFC3339Nano) }, nil},
	} {
		c := pendingKey()
		test.change(c)
		judged(t, name, c, test.want)
	}
}

func TestAcceptedList(t *testing.T) {
	t.Parallel()
	got := gate.Accepted{Unreadable: []string{"b..c", "a..b", "a..b"}, Unidentified: true, SoleCluster: true}.List()
	if want := []string{"sole-cluster", "unidentified-store", "unreadable a..b", "unreadable b..c"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (gate.Accepted{}).List(); got == nil || len(got) != 0 {
		t.Errorf("nothing: %q", got)
	}
}

// This machine's clock may have been ahead of those of the nodes: the key that followed was current nowhere yet.
func TestSuccessorByTheNodesClocks(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		then, now string
		want      []string
	}{
		"after it":           {at(0.5).Format(time.RFC3339Nano), at(25.5).Format(time.RFC3339Nano), nil},
		"within the renewal": {at(-0.05).Format(time.RFC3339Nano), at(26).Format(time.RFC3339Nano), nil},
		"unknown":            {"", at(26).Format(time.RFC3339Nano), nil},
		"before it": {at(-2).Format(time.RFC3339Nano), at(23).Format(time.RFC3339Nano),
			[]string{"when the report report.json was made, the clocks of the control-plane nodes said 2"}},
	} {
		c := sound()
		c.File.Report.Sources[0].Clock, c.Own.Sources[0].Clock = test.then, test.now
		judged(t, name, c, test.want)
	}
}
