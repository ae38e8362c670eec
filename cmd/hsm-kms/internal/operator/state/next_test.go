package state

import (
	"strings"
	"testing"
	"time"
)

// known is a cluster of two nodes that has turned to key2 an hour ago, and is at rest.
func known() World {
	now := epoch.Add(100 * time.Hour)
	first, second := Key{ID: "ring/key1/1"}, Key{ID: "ring/key2/2", Activates: now.Add(-time.Hour)}
	w := World{Now: now, Settle: 24 * time.Hour, Recheck: time.Hour, Clean: map[string]time.Time{}, Trouble: map[Action]Trouble{}}
	for _, name := range []string{"n1", "n2"} {
		w.Nodes = append(w.Nodes, Node{Name: name, Current: second, Retained: []Key{first}})
	}
	w.Servers = &Servers{At: now, Names: []string{"s1", "s2"}}
	w.Proof = &Proof{At: now.Add(-time.Minute), Key: second.ID, Servers: []string{"s1", "s2"}}
	w.Etcd = &Etcd{At: now, Key: second.ID, Under: map[string]int64{second.ID: 7}}
	return w
}

func TestNext(t *testing.T) {
	t.Parallel()
	old, current := known().Nodes[0].Retained[0].ID, known().Nodes[0].Current
	coming := func(in time.Duration, ready bool) Pending {
		at := known().Now.Add(in)
		return Pending{Key: Key{ID: "ring/key3/3", Activates: at}, Ready: ready}
	}
	for name, c := range map[string]struct {
		change func(w *World)
		state  Name
		do     Action
		says   string // in reason or hint
	}{
		"nobody":           {func(w *World) { w.Nodes = nil }, Blocked, Wait, "start hsm-kms operate"},
		"a new node":       {func(w *World) { w.Nodes[1].Unknown, w.Nodes[1].Until = "new", w.Now.Add(time.Minute) }, Converging, Wait, "n2"},
		"a lost node":      {func(w *World) { w.Nodes[1].Unknown = "silent" }, Blocked, Wait, "delete its Lease"},
		"a plugin is down": {func(w *World) { w.Nodes[1].Problem = "hsm unreachable" }, Blocked, Wait, "hsm unreachable"},
		"a plugin on hold": {func(w *World) { w.Nodes[1].Holding = "until noon" }, Blocked, Wait, "n2 answers without its HSM: until noon"},
		"on hold before an activation": {func(w *World) {
			w.pend(coming(time.Hour, true))
			w.Nodes[1].Holding = "until noon"
		}, Blocked, Wait, "becomes current at"},
		"announced":         {func(w *World) { w.pend(coming(time.Hour, true)) }, Announced, Wait, "every node is ready"},
		"not ready":         {func(w *World) { w.pend(coming(time.Hour, false)) }, Converging, Wait, "n1 has not proven it"},
		"not there":         {func(w *World) { w.Nodes[0].Pending = []Pending{coming(time.Hour, true)} }, Converging, Wait, "n2 does not know it"},
		"not ready in time": {func(w *World) { w.pend(coming(time.Minute, false)) }, Blocked, Wait, "withdraw it before then: hsm-kms keys retire ring/key3/3"},
		"lost before an activation": {func(w *World) {
			w.pend(coming(time.Hour, true))
			w.Nodes[1].Unknown = "silent"
		}, Blocked, Wait, "hsm-kms keys retire ring/key3/3"},
		"a clock is ahead": {func(w *World) {
			p := coming(time.Hour, true)
			w.Nodes[0].Pending, w.Nodes[1].Current = []Pending{p}, p.Key
		}, Blocked, Wait, "n2 writes under ring/key3/3, which becomes current at"},
		"a clock is ahead, and others are not ready": {func(w *World) {
			p := coming(time.Minute, false)
			w.Nodes[0].Pending, w.Nodes[1].Current = []Pending{p}, p.Key
		}, Blocked, Wait, "copy the key to every token"},
		"a clock is ahead, and a plugin is down": {func(w *World) {
			p := coming(time.Hour, true)
			w.Nodes[0].Pending, w.Nodes[0].Problem, w.Nodes[1].Current = []Pending{p}, "hsm unreachable", p.Key
		}, Blocked, Wait, "hsm unreachable"},
		"held back": {func(w *World) {
			p := coming(-time.Minute, false)
			p.Deferred, p.Why = true, "hsm-b lacks it"
			w.pend(p)
		}, Blocked, Wait, "hsm-b lacks it"},
		"due":            {func(w *World) { w.pend(coming(-time.Minute, true)) }, Converging, Wait, "is due since"},
		"due for long":   {func(w *World) { w.pend(coming(-time.Hour, true)) }, Blocked, Wait, "the right time"},
		"nodes disagree": {func(w *World) { w.Nodes[1].Current = w.Nodes[1].Retained[0] }, Blocked, Wait, "n1 writes under ring/key2/2, and n2 under ring/key1/1"},
		"just active": {func(w *World) {
			for i := range w.Nodes {
				w.Nodes[i].Current.Activates = w.Now.Add(-time.Second)
			}
		}, Active, Wait, "within a minute"},
		"nothing is read":         {func(w *World) { w.Etcd = nil }, Active, Read, ""},
		"read for another key":    {func(w *World) { w.Etcd.Key = old }, Active, Read, ""},
		"read long ago":           {func(w *World) { w.Etcd.At = w.Now.Add(-2 * time.Hour) }, Active, Read, ""},
		"etcd is away":            {func(w *World) { w.Etcd = nil; w.fail(Read, time.Second, 1) }, Blocked, Wait, "it failed"},
		"etcd is tried again":     {func(w *World) { w.Etcd = nil; w.fail(Read, RetryFirst, 1) }, Blocked, Read, ""},
		"etcd is away for long":   {func(w *World) { w.Etcd = nil; w.fail(Read, 4*time.Minute, 100) }, Blocked, Wait, "it failed"},
		"at most five minutes":    {func(w *World) { w.Etcd = nil; w.fail(Read, RetryMost, 100) }, Blocked, Read, ""},
		"left":                    {func(w *World) { w.Etcd.Left = 3 }, Migrating, Migrate, "(3)"},
		"left, servers not seen":  {func(w *World) { w.Etcd.Left, w.Servers = 3, nil }, Active, Look, ""},
		"left, one is missing":    {func(w *World) { w.Etcd.Left, w.Servers.Missing = 3, "no operate on n3" }, Blocked, Wait, "no operate on n3"},
		"left, one is not ready":  {func(w *World) { w.Etcd.Left, w.Servers.NotReady = 3, "s2: 500" }, Blocked, Wait, "s2: 500"},
		"left, proof of others":   {func(w *World) { w.Etcd.Left, w.Servers.Names = 3, []string{"s1", "s2", "s3"} }, Proving, Prove, ""},
		"left, proof of old key":  {func(w *World) { w.Etcd.Left, w.Proof.Key = 3, old }, Proving, Prove, ""},
		"left, not proven":        {func(w *World) { w.Etcd.Left, w.Proof = 3, nil; w.fail(Prove, 0, 1) }, Blocked, Wait, "it failed"},
		"left, cannot be changed": {func(w *World) { w.Etcd.Left = 3; w.fail(Migrate, 0, 1) }, Blocked, Wait, "it failed"},
		"no old key": {func(w *World) {
			for i := range w.Nodes {
				w.Nodes[i].Retained = nil
			}
		}, Steady, Wait, ""},
		"read before the proof": {func(w *World) { w.Etcd.At = w.Proof.At.Add(-time.Second) }, Proving, Read, ""},
		"clean at first":        {func(*World) {}, Settling, Record, ""},
		"other resources":       {func(w *World) { w.Etcd.Under[old] = 2 }, Blocked, Wait, "--resources"},
		"settling":              {func(w *World) { w.Clean[old] = w.Now.Add(-time.Hour) }, Settling, Wait, "24h have passed"},
		"not clean any more":    {func(w *World) { w.Clean[old] = w.Now.Add(-time.Hour); w.Etcd.Under[old] = 1 }, Migrating, Forget, ""},
		"settled":               {func(w *World) { w.Clean[old] = w.Now.Add(-24 * time.Hour) }, Retirable, Wait, "clean of it twice"},
		"settled, read before": {func(w *World) {
			w.Clean[old], w.Etcd.At = w.Now.Add(-24*time.Hour-time.Second), w.Now.Add(-2*time.Second)
		}, Settling, Read, "second time"},
		"settled, not proven": {func(w *World) { w.Clean[old] = w.Now.Add(-25 * time.Hour); w.Proof = nil }, Proving, Prove, ""},
		"etcd was restored": {func(w *World) {
			w.Clean[old], w.Etcd.Against = w.Now.Add(-25*time.Hour), map[string]string{old: "it was restored"}
		}, Settling, Forget, "it was restored"},
		"no evidence": {func(w *World) { w.fail(Record, 0, 1) }, Blocked, Wait, "it failed"},
	} {
		w := known()
		c.change(&w)
		d := Next(w)
		if d.State != c.state || d.Do != c.do || !strings.Contains(d.Reason+d.Hint, c.says) {
			t.Errorf("%s: %+v, want %s, %s, %q", name, d, c.state, c.do, c.says)
		}
		if d.State == Blocked && (d.Reason == "" || d.Hint == "") {
			t.Errorf("%s: a block that does not say why or what to do: %+v", name, d)
		}
		for _, n := range w.Nodes {
			if n.Current.ID != "" && strings.Contains(d.Hint, "keys retire "+n.Current.ID) {
				t.Errorf("%s: a key that is in use is to be withdrawn: %+v", name, d)
			}
		}
		if (d.State == Retirable) != (len(d.Retirable) > 0) || len(d.Retirable) > 0 && d.Retirable[0] == current.ID {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func (w *World) pend(p Pending) {
	for i := range w.Nodes {
		w.Nodes[i].Pending = []Pending{p}
	}
}

func (w *World) fail(action Action, ago time.Duration, inARow int) {
	w.Trouble[action] = Trouble{At: w.Now.Add(-ago), InARow: inARow, Reason: "it failed", Hint: "do something"}
}

// Plugins of one version of the program name at most 16 old keys; one that is retired makes room for the next.
func TestSeveralOldKeys(t *testing.T) {
	t.Parallel()
	w := known()
	older := Key{ID: "ring/key0/0"}
	w.Nodes[0].Retained = append([]Key{older}, w.Nodes[0].Retained...)
	w.Clean[older.ID] = w.Now.Add(-48 * time.Hour)
	if d := Next(w); d.Do != Record || len(d.Keys) != 1 || d.Keys[0] == older.ID {
		t.Errorf("%+v", d)
	}
	w.Clean[w.Nodes[1].Retained[0].ID] = w.Now.Add(-time.Minute)
	if d := Next(w); d.State != Retirable || len(d.Retirable) != 1 || d.Retirable[0] != older.ID {
		t.Errorf("%+v", d)
	}
}
