package operator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// A node publishes what its plugin says, and another one sees it as soon as its Lease has changed under its eyes.
func TestNodesSeeEachOther(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	old, current := keyID(t, time.Now().Add(-2*time.Hour)), keyID(t, time.Now().Add(-time.Hour))
	p := newPlugin(t, current, old)
	one, two := newOperator(t, a, p, "n1"), newOperator(t, a, p, "n2")
	publish := func(o *Operator) {
		t.Helper()
		o.look(t.Context())
		if err := o.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	see := func() state.Node {
		t.Helper()
		nodes, err := one.nodes(t.Context())
		if err != nil || len(nodes) != 2 || nodes[0].Name != "n1" || nodes[0].Unknown != "" {
			t.Fatalf("%+v, %v", nodes, err)
		}
		return nodes[1]
	}
	publish(one)
	publish(two)
	if n := see(); n.Unknown == "" || n.Until.IsZero() {
		t.Errorf("at first sight: %+v", n)
	}
	publish(two)
	n := see()
	if n.Unknown != "" || n.Problem != "" || n.Current.ID != current || n.Current.Activates.IsZero() || len(n.Retained) != 1 || n.Retained[0].ID != old {
		t.Errorf("when it was seen to change: %+v", n)
	}
	p.mu.Lock()
	p.healthz = "the HSM is away"
	p.mu.Unlock()
	publish(two)
	if n := see(); n.Problem != "the HSM is away" {
		t.Errorf("with a plugin that is not well: %+v", n)
	}
	for name, wrong := range map[string]func(*node){
		"protocol 2":                     func(n *node) { n.Protocol = 2 },
		"need a --namespace each":        func(n *node) { n.Ring = "other" },
		"which is no key_id of the ring": func(n *node) { n.KeyID, n.Problem = "other/x00/0011223344556677", "" },
	} {
		two.mu.Lock()
		was := two.self
		wrong(&two.self)
		two.mu.Unlock()
		if err := two.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := see(); !strings.Contains(n.Unknown+n.Problem, name) {
			t.Errorf("%s: %+v", name, n)
		}
		two.mu.Lock()
		two.self = was
		two.mu.Unlock()
	}
	one.sights[nodeLease("n2")] = sight{Version: one.sights[nodeLease("n2")].Version, At: time.Now().Add(-time.Minute), Changed: true}
	if n := see(); !strings.Contains(n.Unknown, "has not changed for") {
		t.Errorf("after a minute: %+v", n)
	}
}

// One leads; the other takes over when the leader's Lease stays the same, and the first one notices that it lost.
func TestLeadership(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := newPlugin(t, keyID(t, time.Now()))
	one, two := newOperator(t, a, p, "n1"), newOperator(t, a, p, "n2")
	campaign := func(o *Operator, now time.Time, want string) {
		t.Helper()
		if leader, err := o.campaign(t.Context(), now); err != nil || leader != want {
			t.Fatalf("%s: %q leads (%v), want %q", o.cfg.Node, leader, err, want)
		}
	}
	now := time.Now()
	campaign(one, now, "n1")
	campaign(two, now, "n1")
	campaign(one, now, "n1")
	leading := one.leading()
	if leading == nil || two.leading() != nil {
		t.Fatal("not the one that leads")
	}
	campaign(two, now.Add(5*time.Second), "n1") // it was seen to change just now
	campaign(two, now.Add(10*time.Second), "n2")
	campaign(one, now.Add(10*time.Second), "n2")
	if leading.Err() == nil || one.leading() != nil || two.leading() == nil {
		t.Error("the first one still leads")
	}

	a.set(func() { a.down = true })
	if _, err := two.campaign(t.Context(), now.Add(11*time.Second)); err == nil || two.leading() == nil {
		t.Errorf("an API server that is down for a moment: %v, leads: %v", err, two.leading() != nil)
	}
	if _, err := two.campaign(t.Context(), now.Add(13*time.Second)); err == nil || two.leading() != nil {
		t.Errorf("an API server that is down for most of the Lease: %v, leads: %v", err, two.leading() != nil)
	}
}

// An API server, a plugin and an etcd that are away never end it, and nothing is written meanwhile.
func TestEverythingAway(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	a := newAPI(t)
	p := newPlugin(t, keyID(t, time.Now().Add(-time.Hour)))
	o := newOperator(t, a, p, "n1")
	o.cfg.Interval = 20 * time.Millisecond
	a.set(func() { a.down = true })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); o.Run(ctx) }()
	wait := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for !ok() {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	asked := func(n int) func() bool {
		return func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.requests > n }
	}
	wait("it does not ask", asked(5))
	if n := a.count("/"); n != 0 {
		t.Errorf("%d objects were made", n)
	}
	a.set(func() { a.down = false })
	var ring keyRing
	wait("no KeyRing when the API server is back", func() bool { return a.get(t, keyRings+"/ring", &ring) && ring.Status.State == state.Blocked })
	if !strings.Contains(ring.Status.Message, "127.0.0.1:1") && ring.Status.Hint == "" {
		t.Errorf("what it says of an etcd that is away: %+v", ring.Status)
	}
	if a.count("/api/v1/namespaces/"+namespace) != 0 {
		t.Error("it planted something")
	}
	p.mu.Lock()
	p.healthz = "the HSM is away"
	p.mu.Unlock()
	wait("the plugin's problem is not told", func() bool {
		a.get(t, keyRings+"/ring", &ring)
		return strings.Contains(ring.Status.Message, "the HSM is away")
	})
	if a.count("/api/v1/namespaces/default/events/") == 0 {
		t.Error("there is no Event")
	}
	cancel()
	<-ended
}

// While API servers are away each node asks ever more rarely, and comes back by itself.
func TestBackoff(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{0: 30 * time.Second, 1: 30 * time.Second, 2: time.Minute, 4: 4 * time.Minute, 5: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := pause(30*time.Second, failures); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
	for interval, want := range map[time.Duration]time.Duration{time.Second: 10 * time.Second, time.Hour: time.Hour} {
		if got := pause(interval, 100); got != want {
			t.Errorf("with --interval %s at most %s, want %s", interval, got, want)
		}
	}
	a := newAPI(t)
	a.down = true
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	o.cfg.Interval = 15 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	began := time.Now()
	go func() { defer close(ended); o.keepLeases(ctx) }()
	for asked := 0; asked < 2*7; time.Sleep(time.Millisecond) { // seven attempts: the pauses between them are of 1, 2, 4, 8, 10 and 10 intervals
		a.set(func() { asked = a.requests })
	}
	if took := time.Since(began); took < 30*o.cfg.Interval {
		t.Errorf("seven attempts within %s", took)
	}
	a.set(func() { a.down = false })
	for deadline := time.Now().Add(30 * time.Second); a.count("/apis/coordination.k8s.io") < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is published when the API server is back")
		}
	}
	cancel()
	<-ended
}

// A failure to read in one pass is no state that a person has to see to.
func TestOnceCannotRead(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now().Add(-time.Hour))), "n1")
	result, err := o.Once(t.Context()) // there is no etcd
	if err == nil || hint.Of(err) == "" || result == nil || result.Status == nil || result.Status.State != state.Blocked {
		t.Errorf("without etcd: %+v, %v", result, err)
	}
	a.set(func() { a.noList = true })
	if result, err = o.Once(t.Context()); !errors.Is(err, migrate.ErrBadAnswer) || result.Status.State != state.Blocked {
		t.Errorf("without the Leases: %+v, %v", result, err)
	}
}

// An action takes as long as it takes: what nodes say is looked at again before the next one is decided.
func TestNodesSeenAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	a := newAPI(t)
	current := keyID(t, time.Now().Add(-time.Hour))
	p := newPlugin(t, current)
	o := newOperator(t, a, p, "n1")
	o.look(t.Context())
	o.world.Etcd = &state.Etcd{At: time.Now(), Key: current, Left: 1, Findings: "1 object"} // so it looks at the API servers next
	a.set(func() {
		a.ready = func() { // longer than an interval
			time.Sleep(o.cfg.Interval)
			o.mu.Lock()
			defer o.mu.Unlock()
			o.self.Problem = "the HSM is away"
		}
	})
	got, err := o.pass(t.Context())
	if err != nil || !strings.Contains(got.Message, "the HSM is away") {
		t.Errorf("%+v, %v", got, err)
	}
}

// Without the CRD the state stands in the log and in the result.
func TestWithoutCRD(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.crd = false
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	result, err := o.Once(t.Context())
	if err != nil || result.Leader != "n1" || result.Status == nil || result.Status.State != state.Active || result.Status.NextStep == "" {
		t.Fatalf("%+v, %v", result, err)
	}
	if a.count(keyRings) != 0 || a.count("/api/v1/namespaces/default/events/") != 0 {
		t.Error("it wrote what nobody reads")
	}
}

// Sights of one pass count for the next one, in another process.
func TestOnce(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := newPlugin(t, keyID(t, time.Now()))
	one, two := newOperator(t, a, p, "n1"), newOperator(t, a, p, "n2")
	pass := func(o *Operator, want state.Name, leader string) {
		t.Helper()
		again := newOperator(t, a, p, o.cfg.Node)
		again.cfg.StateDir = o.cfg.StateDir
		result, err := again.Once(t.Context())
		if err != nil || result.Leader != leader || (want != "") != (result.Status != nil) || want != "" && result.Status.State != want {
			t.Fatalf("%+v (%+v), %v", result, result.Status, err)
		}
	}
	pass(one, state.Active, "n1")
	pass(two, "", "n1")
	pass(one, state.Converging, "n1") // it sees the other one for the first time
	pass(two, "", "n1")
	pass(one, state.Active, "n1")
}

// The history goes on under a new leader, has an end, and says nothing twice.
func TestHistory(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := newPlugin(t, keyID(t, time.Now()))
	one := newOperator(t, a, p, "n1")
	states := []state.Name{state.Steady, state.Announced}
	for i := range maxHistory + 3 {
		for range 2 {
			one.show(t.Context(), state.Decision{State: states[i%2], Reason: "because"})
		}
	}
	one.show(t.Context(), state.Decision{State: state.Retirable, Reason: "done", Retirable: []string{"ring/x00/0011223344556677"}})
	var ring keyRing
	a.get(t, keyRings+"/ring", &ring)
	if n := len(ring.Status.History); n != maxHistory || ring.Status.History[n-1].State != state.Retirable || !strings.Contains(ring.Status.Command, "hsm-kms keys retire ring/x00/0011223344556677 --evidence "+one.cfg.StateDir) {
		t.Errorf("%+v", ring.Status)
	}
	two := newOperator(t, a, p, "n2")
	two.show(t.Context(), state.Decision{State: state.Steady, Reason: "and again"})
	a.get(t, keyRings+"/ring", &ring)
	if n := len(ring.Status.History); n != maxHistory || ring.Status.History[n-2].State != state.Retirable || ring.Status.Leader != "n2" || ring.Status.Command != "" || len(ring.Status.Retirable) != 0 {
		t.Errorf("%+v", ring.Status)
	}
	if n := a.count("/api/v1/namespaces/default/events/"); n != maxHistory+5 {
		t.Errorf("%d Events", n)
	}
}

// A folder that others may change is no place for what a key is retired by.
func TestStateDirOfOthers(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openKept(dir); err == nil || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := strings.ReplaceAll("ring/x00/0011223344556677", "/", "_")
	if err := os.WriteFile(filepath.Join(dir, keptPrefix+name+keptSuffix), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err := openKept(dir); err != nil || len(k.files) != 0 {
		t.Errorf("a file that is no evidence: %v, %v", k.files, err)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	o := &Operator{hostnames: map[string]bool{"cp-1": true, "cp-2": true}, world: state.World{Nodes: make([]state.Node, 2)}}
	for _, c := range []struct {
		hosts   []string
		servers int
		says    string // empty: nobody is missing
	}{
		{nil, 2, ""},
		{[]string{"cp-1", "cp-2"}, 2, ""},
		{[]string{"cp-1", "", "cp-2"}, 2, "name each with --server"},
		{[]string{"cp-1", "cp-3"}, 2, "cp-3"},
		{[]string{"cp-1", "cp-2"}, 3, "run it beside each"},
	} {
		if got := o.missing(c.hosts, c.servers); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%v, %d servers: %q", c.hosts, c.servers, got)
		}
	}
}

// A clock that is set back makes what was seen new: it must change before it counts.
func TestSights(t *testing.T) {
	t.Parallel()
	s, now := sights{}, time.Now()
	lease := &coordinationv1.Lease{}
	see := func(version string, at time.Time) sight {
		lease.ResourceVersion = version
		return s.see("x", lease, at)
	}
	if got := see("1", now); got.Changed {
		t.Error("changed at first sight")
	}
	if got := see("2", now.Add(time.Second)); !got.Changed {
		t.Error("no change was seen")
	}
	if got := see("2", now.Add(time.Minute)); !got.Changed || !got.At.Equal(now.Add(time.Second)) {
		t.Errorf("%+v", got)
	}
	if got := see("2", now.Add(-time.Hour)); got.Changed || !got.At.Equal(now.Add(-time.Hour)) {
		t.Errorf("after a step back: %+v", got)
	}
}

func TestUnproven(t *testing.T) {
	t.Parallel()
	for hinted, proof := range map[string]migrate.Proof{
		"EncryptionConfiguration on that node": {Server: "s2", Resource: "secrets", Writes: "kms:v2:hsm-kms", KeyID: "ring/x00/0011223344556677"},
		"admission and roles":                  {Server: "s2", Resource: "secrets", Error: "no canaries here"},
		"--group-server":                       {Server: "s2", Resource: "flunders.wardle.example.com", Error: "passed on", Behind: "wardle/api"},
	} {
		out := &migrate.Outcome{Servers: []migrate.Proof{{Server: "s1", OK: true}, {Server: "s1", Skipped: true}, proof}}
		err := unproven(out, migrate.ErrUnproven)
		if _, found := errors.AsType[*finding](err); !found || !errors.Is(err, migrate.ErrUnproven) || !strings.Contains(err.Error(), "s2") || !strings.Contains(hint.Of(err), hinted) {
			t.Errorf("%v (hint %q), want %q", err, hint.Of(err), hinted)
		}
	}
	if other := errors.New("etcd is away"); !errors.Is(unproven(nil, other), other) {
		t.Error("another error is lost")
	}
}

// Each condition says what it is about, in a reason and in words, as kubectl wait and a person read them.
func TestConditions(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	current := state.Key{ID: "ring/x00/0011223344556677"}
	settling := state.Decision{State: state.Settling, Reason: "it is waited", Current: current}
	for name, c := range map[string]struct {
		decision state.Decision
		etcd     *state.Etcd
		ending   string
		want     []string
	}{
		"nothing known": {state.Decision{State: state.Blocked, Reason: "a node is away"}, nil, "", []string{
			"Agreed False NotYet: not every node is known, well, and has the same current key", "Clean Unknown NotRead: etcd was not read since the current key changed",
			"Blocked True NeedsPerson: a node is away", "CertificatesEnding False AllGood: no certificate of a known node ends within 30 days",
		}},
		"all well": {settling, &state.Etcd{At: at, Key: current.ID}, "", []string{
			"Agreed True SameKey: every node writes under ring/x00/0011223344556677", "Clean True NothingLeft: everything was under the current key at 2030-01-02T03:04:05Z",
			"Blocked False GoesOn: nobody has to do anything", "CertificatesEnding False AllGood: no certificate of a known node ends within 30 days",
		}},
		"objects left": {settling, &state.Etcd{At: at, Key: current.ID, Left: 3, Findings: "secrets: 3 objects"}, "that of n2 ends", []string{
			"Agreed True SameKey: every node writes under ring/x00/0011223344556677", "Clean False ObjectsLeft: secrets: 3 objects",
			"Blocked False GoesOn: nobody has to do anything", "CertificatesEnding True EndsSoon: that of n2 ends",
		}},
	} {
		o.world.Etcd, o.ending = c.etcd, c.ending
		var got []string
		for _, is := range o.status(c.decision, at).Conditions {
			got = append(got, fmt.Sprintf("%s %s %s: %s", is.Type, is.Status, is.Reason, is.Message))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// A node that stays away is told once, however long it is away and however its error is worded each time.
func TestEventsOfOneBlock(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := newPlugin(t, keyID(t, time.Now().Add(-time.Hour)))
	one, two := newOperator(t, a, p, "n1"), newOperator(t, a, p, "n2")
	one.look(t.Context())
	for range 2 {
		if err := two.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := one.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := a.count("/api/v1/namespaces/default/events/")
	for minutes := range 10 {
		was := one.sights[nodeLease("n2")]
		one.sights[nodeLease("n2")] = sight{Version: was.Version, At: time.Now().Add(-time.Duration(minutes+1) * time.Minute), Changed: true}
		if got, err := one.pass(t.Context()); err != nil || got.State != state.Blocked || !strings.Contains(got.Message, "n2") {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	for range 10 {
		one.show(t.Context(), state.Decision{State: state.Blocked, Reason: "read tcp 127.0.0.1:" + rand.Text() + ": connection reset by peer"})
	}
	if n := a.count("/api/v1/namespaces/default/events/") - before; n > 2 {
		t.Errorf("%d Events of one block", n)
	}
}

// The command is whole in an Event, or not there: without its last flags it would say something else.
func TestLongEvent(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	o.cfg.RetireFlags = "--settle 48h0m0s"
	message := func(reason string) string {
		t.Helper()
		a.set(func() { clear(a.objects) })
		o.shown = shown{}
		o.show(t.Context(), state.Decision{State: state.Retirable, Reason: reason, Retirable: []string{"ring/x00/0011223344556677"}})
		a.mu.Lock()
		defer a.mu.Unlock()
		for path, object := range a.objects {
			if strings.HasPrefix(path, eventsPath) {
				text, _ := object["message"].(string)
				return text
			}
		}
		t.Fatal("no Event")
		return ""
	}
	if text := message("clean"); !strings.HasSuffix(text, "--settle 48h0m0s") {
		t.Errorf("%q", text)
	}
	if text := message(strings.Repeat("\u00e9", 480)); strings.Contains(text, "keys retire") {
		t.Errorf("a part of the command: %q", text)
	}
	if text := message("x" + strings.Repeat("\u00e9", 600)); len(text) > maxMessage || strings.ContainsRune(text, utf8.RuneError) {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

// Of two that see at the same moment that nobody leads, the second one does not take the leadership from the first one.
func TestLeadershipAtStart(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	a.rival = "n2"
	if leader, err := o.campaign(t.Context(), time.Now()); err != nil || leader != "" || o.leading() != nil {
		t.Errorf("%q leads, %v", leader, err)
	}
	if leader, err := o.campaign(t.Context(), time.Now()); err != nil || leader != "n2" || o.leading() != nil {
		t.Errorf("%q leads, %v", leader, err)
	}
}

// An identity that may not write the Lease of the leader is told so.
func TestLeaseRefused(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	o.look(t.Context())
	if err := o.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.set(func() { a.forbidden = leaderLease })
	if leader, err := o.campaign(t.Context(), time.Now()); err == nil || leader != "" || o.leading() != nil {
		t.Errorf("%q leads, %v", leader, err)
	}
	if _, err := o.Once(t.Context()); err == nil {
		t.Error("one pass without a leader is no success")
	}
}

// An answer that is no list, from a proxy for example, does not mean that there are no other nodes.
func TestNoList(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	o := newOperator(t, a, newPlugin(t, keyID(t, time.Now())), "n1")
	o.look(t.Context())
	a.set(func() { a.noList = true })
	if nodes, err := o.nodes(t.Context()); !errors.Is(err, migrate.ErrBadAnswer) {
		t.Errorf("%+v, %v", nodes, err)
	}
	if got, err := o.pass(t.Context()); !errors.Is(err, migrate.ErrBadAnswer) || got.State != state.Blocked {
		t.Errorf("%+v, %v", got, err)
	}
}

// A node on its outage hold disagrees with nobody, and is known to be on hold; how long holds may last is known as long as the
// plugin was seen to have one, and everybody settles for as long.
func TestHold(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	current := keyID(t, time.Now().Add(-time.Hour))
	p := newPlugin(t, current)
	o := newOperator(t, a, p, "n1")
	seen := func(change func()) state.Node {
		t.Helper()
		p.mu.Lock()
		change()
		p.mu.Unlock()
		o.look(t.Context())
		if err := o.see(t.Context()); err != nil {
			t.Fatal(err)
		}
		return o.world.Nodes[0]
	}
	if n := seen(func() {}); n.Holding != "" || n.OutageHold != 0 || o.world.Settle != o.cfg.Settle {
		t.Errorf("without a hold: %+v, settles for %s", n, o.world.Settle)
	}
	if text, err := o.self.text(); err != nil || strings.Contains(text, "hold") {
		t.Errorf("it publishes %s, %v", text, err)
	}
	n := seen(func() { p.hold = `{"limit":7200000000000,"armed":true}` })
	if n.Holding != "" || n.OutageHold != 2*time.Hour || o.world.Settle != 26*time.Hour {
		t.Errorf("armed: %+v, settles for %s", n, o.world.Settle)
	}
	n = seen(func() { p.hold = `{"limit":7200000000000,"holding":true,"until":"2030-01-01T12:00:00Z"}` })
	if n.Holding != "until 2030-01-01T12:00:00Z at the latest" || n.Current.ID != current {
		t.Errorf("on hold: %+v", n)
	}
	n = seen(func() { p.keyID = current + "/hold" })
	if n.Problem != "" || n.Holding == "" || n.Current.ID != current {
		t.Errorf("on hold, and it wrote: %+v", n)
	}
	if n = seen(func() { p.hold = "" }); n.Problem != "" || n.Holding != "it names "+current+"/hold" || n.Current.ID != current {
		t.Errorf("the key_id alone says so: %+v", n)
	}
	for _, text := range []string{current + "/hold/hold", "other/x00/0011223344556677/hold", "/hold"} {
		if n = seen(func() { p.keyID = text }); n.Problem == "" || n.Holding != "" || n.Current.ID != "" {
			t.Errorf("it names %s: %+v", text, n)
		}
	}
	seen(func() { p.hold, p.keyID = `{"limit":7200000000000}`, current })
	n = seen(func() { p.err = errors.New("gone") })
	if n.Problem == "" || n.OutageHold != 2*time.Hour || o.world.Settle != 26*time.Hour {
		t.Errorf("a plugin that is gone: %+v, settles for %s", n, o.world.Settle)
	}
}
