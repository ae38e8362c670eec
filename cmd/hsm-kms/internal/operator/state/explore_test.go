package state

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// The explorer runs the real Next in every order of events and losses of a small world: two nodes with an API server each,
// two keys, up to a number of events from two beginnings. See TestExplore for the bound and what is checked.

const (
	nodes      = 2
	settleTime = 24 * time.Hour
	none       = int8(-1)
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func keyID(k int8) string { return fmt.Sprintf("key%d", k+1) }

// minutes since epoch; comparable, so that a whole model is.
type minutes int32

func (m minutes) time() time.Time { return epoch.Add(time.Duration(m) * time.Minute) }

// model is the whole truth, and what the leader knows of it.
type model struct {
	now       minutes
	rotated   bool
	activates minutes // of key 2

	node   [nodes]modelNode
	server [nodes]modelServer
	object [nodes]int8 // key of the object that each server wrote; none: there is none
	rare   [nodes]int8 // the same, of a resource that may have no object

	known leader
}

type modelNode struct {
	operate bool // its operate runs and publishes
	read    bool // its plugin has read key 2
	behind  bool // its clock is an hour behind
	floor   int8 // the plugin never goes back below this key
	// What it published last.
	said    bool
	current int8
	pending bool
	ready   bool
	old     bool // key 1 is retained
}

type modelServer struct {
	up     bool
	writes int8 // key
	rare   int8 // key, of the resource that may have no object: an entry of its own
	// strayed: somebody gave it an EncryptionConfiguration with another plugin, which has key 1 alone.
	strayed bool
	unseen  bool // strayed since the last proof, which counts for an hour: nobody can know of it
}

// leader is what the leading operate holds in memory and on its disk.
type leader struct {
	looked, ready      bool
	lookedAt           minutes
	proven             bool
	provenAt           minutes
	provenKey          int8
	wasRead            bool
	readAt             minutes
	readKey            int8
	left               int8
	under              [2]int8
	clean              [2]bool
	cleanAt            [2]minutes
	failed             int8 // proofs in a row
	failedAt           minutes
	failedToMigrate    int8
	failedToMigrateAt  minutes
	retirable, decided bool
}

func beginnings() map[string]model {
	quiet := model{object: [nodes]int8{0, 0}, rare: [nodes]int8{none, none}}
	for i := range nodes {
		quiet.node[i] = modelNode{operate: true}
		quiet.server[i] = modelServer{up: true}
	}
	quiet.publish()
	turned := quiet
	turned.rotated, turned.activates, turned.now = true, 0, 4
	for i := range nodes {
		turned.node[i].read = true
	}
	turned.publish()
	return map[string]model{"quiet": quiet, "turned": turned}
}

// current is what the plugin of a node writes under.
func (m *model) current(i int) int8 {
	n := &m.node[i]
	clock := m.now
	if n.behind {
		clock -= 60
	}
	if m.rotated && n.read && clock >= m.activates {
		n.floor = 1
	}
	return n.floor
}

// publish is a beat of every operate that runs.
func (m *model) publish() {
	for i := range nodes {
		n := &m.node[i]
		current := m.current(i)
		if !n.operate {
			continue
		}
		n.said, n.current = true, current
		n.pending = m.rotated && n.read && current == 0
		n.ready, n.old = n.pending, current == 1
	}
}

// tick lets time pass. A Lease of an operate that does not run is stale then. After a long one every API server has asked
// its plugin, for every entry: no DEK is used that long.
func (m *model) tick(d minutes) {
	m.now += d
	for i := range nodes {
		if !m.node[i].operate {
			m.node[i].said = false
		}
		if d > 60 {
			m.server[i].unseen = false
			m.notice(i, true)
		}
	}
	m.publish()
}

// notice: an API server asks its plugin, for the entry that everything can be seen by or for the other one.
func (m *model) notice(i int, both bool) {
	if s := &m.server[i]; s.up && !s.strayed {
		s.writes = m.current(i)
		if both {
			s.rare = s.writes
		}
	}
}

type event struct {
	name  string
	apply func(m *model) bool // false: it cannot happen now
}

func events() []event {
	all := []event{
		{"rotate", func(m *model) bool {
			if m.rotated {
				return false
			}
			m.rotated, m.activates = true, m.now+1
			return true
		}},
		{"tick", func(m *model) bool { m.tick(2); return true }},
		{"day", func(m *model) bool { m.tick(25 * 60); return m.now < 80*60 }},
		{"new leader", func(m *model) bool { m.known = leader{}; return true }},
		{"restart of the leader", func(m *model) bool {
			m.known = leader{clean: m.known.clean, cleanAt: m.known.cleanAt}
			return true
		}},
	}
	for i := range nodes {
		on := func(name string, apply func(m *model) bool) {
			all = append(all, event{fmt.Sprintf("%s %d", name, i), apply})
		}
		on("read", func(m *model) bool { was := m.node[i].read; m.node[i].read = m.rotated; return m.rotated && !was })
		on("operate", func(m *model) bool { m.node[i].operate = !m.node[i].operate; return true })
		on("notice", func(m *model) bool { m.notice(i, false); return m.server[i].up })
		on("notice all", func(m *model) bool { m.notice(i, true); return m.server[i].up })
		on("write", func(m *model) bool { m.object[i] = m.server[i].writes; return m.server[i].up })
		on("write rare", func(m *model) bool { m.rare[i] = m.server[i].rare; return m.server[i].up })
		on("stray", func(m *model) bool {
			s := &m.server[i]
			s.strayed, s.unseen, s.writes, s.rare = true, true, 0, 0
			return m.rotated
		})
		on("server", func(m *model) bool {
			m.server[i].up = !m.server[i].up
			m.notice(i, true)
			return true
		})
	}
	return append(all, event{"clock 1", func(m *model) bool { m.node[1].behind = !m.node[1].behind; return true }})
}

// world is what the leader sees.
func (m *model) world() World {
	w := World{Now: m.now.time(), Settle: settleTime, Recheck: time.Hour, Clean: map[string]time.Time{}, Trouble: map[Action]Trouble{}}
	keys := []Key{{ID: keyID(0)}, {ID: keyID(1), Activates: m.activates.time()}}
	for i := range nodes {
		n := &m.node[i]
		node := Node{Name: fmt.Sprint("n", i), Current: keys[n.current]}
		if !n.said {
			node.Unknown = "its Lease does not change"
		}
		if n.pending {
			node.Pending = []Pending{{Key: keys[1], Ready: n.ready}}
		}
		if n.old {
			node.Retained = keys[:1]
		}
		w.Nodes = append(w.Nodes, node)
	}
	l, names := &m.known, []string{"s0", "s1"}
	if l.looked {
		w.Servers = &Servers{At: l.lookedAt.time(), Names: names}
		if !l.ready {
			w.Servers.NotReady = "one is down"
		}
	}
	if l.proven {
		w.Proof = &Proof{At: l.provenAt.time(), Key: keyID(l.provenKey), Servers: names}
	}
	if l.wasRead {
		w.Etcd = &Etcd{At: l.readAt.time(), Key: keyID(l.readKey), Left: int64(l.left), Under: map[string]int64{}}
		for k := range int8(2) {
			w.Etcd.Under[keyID(k)] = int64(l.under[k])
		}
	}
	for k := range int8(2) {
		if l.clean[k] {
			w.Clean[keyID(k)] = l.cleanAt[k].time()
		}
	}
	if l.failed > 0 {
		w.Trouble[Prove] = Trouble{At: l.failedAt.time(), InARow: int(l.failed), Reason: "not proven"}
	}
	if l.failedToMigrate > 0 {
		w.Trouble[Migrate] = Trouble{At: l.failedToMigrateAt.time(), InARow: int(l.failedToMigrate), Reason: "not migrated"}
	}
	return w
}

// pass is a pass of the leader.
func (m *model) pass(next func(World) Decision) (Decision, error) {
	m.publish()
	for range 20 {
		d := next(m.world())
		if d.Do == Wait {
			m.known.decided, m.known.retirable = true, len(d.Retirable) > 0
			return d, nil
		}
		m.act(d)
	}
	return Decision{}, fmt.Errorf("a pass has no end: %+v", next(m.world()))
}

func (m *model) act(d Decision) {
	l := &m.known
	switch d.Do {
	case Look:
		l.looked, l.lookedAt, l.ready = true, m.now, m.server[0].up && m.server[1].up
	case Read:
		l.wasRead, l.readAt, l.left, l.under = true, m.now, 0, [2]int8{}
		l.readKey = m.node[0].current
		for _, key := range slices.Concat(m.object[:], m.rare[:]) {
			if key == none {
				continue
			}
			l.under[key]++
			if key != l.readKey {
				l.left++
			}
		}
	case Prove:
		for i := range nodes {
			m.server[i].unseen = false
		}
		if l.proven = m.writesUnder(m.node[0].current); l.proven {
			l.provenAt, l.provenKey, l.failed = m.now, m.node[0].current, 0
			return
		}
		l.failed, l.failedAt = min(l.failed+1, 4), m.now
	case Migrate:
		if key := m.node[0].current; m.writesUnder(key) {
			for i := range nodes {
				m.object[i] = key
				if m.rare[i] != none {
					m.rare[i] = key
				}
			}
			l.wasRead, l.failedToMigrate = false, 0
			return
		}
		l.failedToMigrate, l.failedToMigrateAt = min(l.failedToMigrate+1, 4), m.now
	case Record, Forget:
		for k := range int8(2) {
			if slices.Contains(d.Keys, keyID(k)) {
				l.clean[k], l.cleanAt[k] = d.Do == Record, l.readAt
			}
		}
	case Wait:
	}
}

// writesUnder is what a proof sees: each API server writes, the rare resource only if there is an object of it.
func (m *model) writesUnder(key int8) bool {
	for i := range nodes {
		rare := m.rare != [nodes]int8{none, none}
		if s := m.server[i]; !s.up || s.writes != key || rare && s.rare != key {
			return false
		}
	}
	return true
}

// unsafe says what speaks against a decision that names key 1 as retirable.
func (m *model) unsafe(d Decision) string {
	if len(d.Retirable) == 0 {
		return ""
	}
	if !slices.Equal(d.Retirable, []string{keyID(0)}) {
		return fmt.Sprintf("%v is retirable", d.Retirable)
	}
	for i := range nodes {
		switch s := m.server[i]; {
		case s.up && !s.unseen && (s.writes == 0 || s.rare == 0):
			return fmt.Sprintf("API server %d writes under it", i)
		case m.current(i) == 0:
			return fmt.Sprintf("plugin %d writes under it", i)
		case m.object[i] == 0 || m.rare[i] == 0:
			return "an object is under it"
		}
	}
	return ""
}

// heals: when every loss is over, the rotation comes to its end by itself.
func (m model) heals(next func(World) Decision) error {
	for i := range nodes {
		m.node[i].operate, m.node[i].behind, m.node[i].read = true, false, m.rotated
		m.server[i].up, m.server[i].strayed = true, false
	}
	var d Decision
	for round := range 14 {
		if m.tick(6); round%5 == 4 {
			m.tick(25 * 60)
		}
		for i := range nodes {
			m.notice(i, true)
		}
		var err error
		if d, err = m.pass(next); err != nil {
			return err
		}
		if why := m.unsafe(d); why != "" {
			return fmt.Errorf("%s: %s", d.State, why)
		}
	}
	if m.rotated && d.State != Retirable || !m.rotated && d.State != Steady {
		return fmt.Errorf("it stays %s (%s)", d.State, d.Reason)
	}
	return nil
}

// search is one exploration.
type search struct {
	next  func(World) Decision
	depth int // events
	heal  int // up to so many events, it is also tried whether all comes right when the losses are over
}

// explore visits every state that can be reached. The error names the events that lead to what is wrong.
func (s search) explore(from model) (visited int, seen map[Name]int, err error) {
	type found struct {
		model
		path string
	}
	all := append(events(), event{name: "pass"})
	known, level, seen := map[model]bool{from: true}, []found{{from, ""}}, map[Name]int{}
	for events := range s.depth {
		var following []found
		for _, at := range level {
			for _, e := range all {
				m, path := at.model, at.path+", "+e.name
				if e.apply == nil {
					d, err := m.pass(s.next)
					if why := m.unsafe(d); err != nil || why != "" {
						return len(known), seen, fmt.Errorf("%s: %s %s %v", path, d.State, why, err)
					}
					seen[d.State]++
				} else if !e.apply(&m) {
					continue
				}
				if known[m] {
					continue
				}
				known[m] = true
				if events < s.heal {
					if err := m.heals(s.next); err != nil {
						return len(known), seen, fmt.Errorf("%s: when all is well again: %w", path, err)
					}
				}
				following = append(following, found{m, path})
			}
		}
		level = following
	}
	return len(known), seen, nil
}

// A key that may be written under is never retirable, a pass ends, and every state is left when its cause is gone: in all
// orders of up to five events, and of up to three before the losses are over, from a quiet cluster and from one whose second
// key has just become current.
func TestExplore(t *testing.T) {
	t.Parallel()
	states := map[Name]int{}
	for name, from := range beginnings() {
		visited, seen, err := search{Next, 5, 3}.explore(from)
		if err != nil {
			t.Errorf("%s%v", name, err)
		}
		for state, n := range seen {
			states[state] += n
		}
		t.Logf("%s: %d states", name, visited)
	}
	t.Log(states)
	for _, state := range []Name{Steady, Announced, Converging, Active, Proving, Settling, Retirable, Blocked} {
		if states[state] == 0 {
			t.Errorf("no pass ended in %s: the world that is explored is too small", state)
		}
	}
}

// The word of a node delays, and never proves: also where a node of which nothing is known counts as it was, no key that may
// be written under is retirable.
func TestNodesNeverProve(t *testing.T) {
	t.Parallel()
	next := func(w World) Decision {
		for i := range w.Nodes {
			w.Nodes[i].Unknown = ""
		}
		return Next(w)
	}
	for name, from := range beginnings() {
		if _, _, err := (search{next, 5, 0}).explore(from); err != nil {
			t.Errorf("%s%v", name, err)
		}
	}
}

// The explorer finds what is wrong with rules that are.
func TestExploreBroken(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(w World) World{
		"nothing is proven": func(w World) World {
			if w.Servers != nil {
				w.Proof = &Proof{At: w.Now, Key: w.Nodes[0].Current.ID, Servers: w.Servers.Names}
			}
			return w
		},
		"etcd is not read again": func(w World) World {
			if w.Etcd != nil {
				read := *w.Etcd
				read.At = w.Now
				w.Etcd = &read
			}
			return w
		},
		"nothing settles": func(w World) World {
			w.Settle = 0
			return w
		},
		"what failed is never tried again": func(w World) World {
			if trouble, failed := w.Trouble[Prove]; failed {
				trouble.At = w.Now
				w.Trouble[Prove] = trouble
			}
			return w
		},
	} {
		next := func(w World) Decision { return Next(broken(w)) }
		_, _, caught := search{next, 6, 1}.explore(beginnings()["turned"])
		if caught == nil {
			t.Errorf("%s: not found", name)
			continue
		}
		t.Logf("%s: found by%v", name, caught)
	}
}
