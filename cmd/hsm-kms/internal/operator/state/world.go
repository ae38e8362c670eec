// Package state decides what follows a rotation: from what was seen of nodes, API servers and etcd, [Next] says in which
// state the rotation is, what to do next, and why. It is pure: it asks nobody, reads no clock and keeps nothing. Every pass
// begins with what is seen then, so nothing has to be repaired after a crash. It depends on duration alone.
//
// The rules:
//   - What nodes publish can delay, and never proves. A node or API server that is expected and not known blocks.
//   - What an API server writes is proven by having it write and reading etcd. A proof is about one key and the API servers
//     that there were.
//   - Only etcd says what is left. A reading counts as clean for an old key only if it began after a proof.
//   - A key is retirable when two such readings, [World.Settle] apart, show nothing under it, and the proof and the second
//     reading are recent.
//   - No action makes or destroys a key.
package state

import "time"

// Name is the state of a rotation.
type Name string

// The states, in the order in which a rotation goes through them.
const (
	Steady     Name = "Steady"     // nothing is to be done
	Announced  Name = "Announced"  // a key is to become current, and every node is ready for it
	Converging Name = "Converging" // not every node is ready, or has the same current key
	Active     Name = "Active"     // every node has the key; nothing is known of the API servers and etcd yet
	Proving    Name = "Proving"    // it is found out whether every API server writes under the key
	Migrating  Name = "Migrating"  // what is not under the key is rewritten
	Settling   Name = "Settling"   // nothing is under the old key; it is waited until no API server can write under it
	Retirable  Name = "Retirable"  // a person may retire the old key
	Blocked    Name = "Blocked"    // a person has to do something
)

// Names are all states.
func Names() []Name {
	return []Name{Steady, Announced, Converging, Active, Proving, Migrating, Settling, Retirable, Blocked}
}

// Action is what the caller is to do before it asks again.
type Action string

// The actions. None makes or destroys a key.
const (
	Wait    Action = "wait"    // nothing, until something changes or Decision.Next
	Look    Action = "look"    // which API servers there are, and whether they are ready: World.Servers
	Read    Action = "read"    // etcd, whole: World.Etcd
	Prove   Action = "prove"   // have every API server write: World.Proof
	Migrate Action = "migrate" // have what is left rewritten: World.Etcd is out of date then
	Record  Action = "record"  // keep World.Etcd as the first clean reading of the keys in Decision.Keys
	Forget  Action = "forget"  // drop the clean readings of the keys in Decision.Keys
)

// Times that are not configured.
const (
	// Notice is how long API servers may take to notice a new key: they ask their plugin each minute.
	Notice = 90 * time.Second
	// Grace is how long after an activation nodes may disagree and proofs may fail before a person is called.
	Grace = 5 * time.Minute
	// LastCall is how long before the activation a key that is not ready everywhere calls a person.
	LastCall = 5 * time.Minute
	// FreshFor is how old a proof, a look at the API servers and a reading may be for a migration, and when a key is named for
	// retirement.
	FreshFor = 10 * time.Minute
	// RetryFirst and RetryMost bound the pause after an action that failed. It is doubled each time.
	RetryFirst = 30 * time.Second
	RetryMost  = 5 * time.Minute
)

// Key is a key of the ring. Activates zero: it is active always.
type Key struct {
	ID        string
	Activates time.Time
}

// Pending is a key that is to become current, as one node sees it.
type Pending struct {
	Key
	Ready    bool
	Deferred bool      // due, and held back
	Why      string    // Deferred: why
	Until    time.Time // Deferred: when it becomes current at the latest; zero: there is no such time
}

// Node is what a node says of its plugin.
type Node struct {
	Name     string
	Unknown  string    // why nothing is known of the node now; empty: what follows is known
	Until    time.Time // of one that is not known: it was seen just now, and until then it is waited for without calling a person
	Problem  string    // why its plugin is not well; empty: it is
	Holding  string    // until when it answers without its HSM; empty: it does not
	Current  Key
	Pending  []Pending // the next one first
	Retained []Key     // the oldest first
	// OutageHold is how long its plugin may answer without its HSM. What it writes then is under its current key.
	OutageHold time.Duration
}

// Servers are the API servers at one moment.
type Servers struct {
	At       time.Time
	Names    []string // addresses, sorted
	NotReady string   // which of them are not ready and why; empty: all are
	Missing  string   // who is expected and cannot be addressed, or has no node; empty: nobody
}

// Proof is that each of the API servers wrote under the key.
type Proof struct {
	At      time.Time // when it began
	Key     string
	Servers []string // sorted
}

// Etcd is one whole reading, held against one key.
type Etcd struct {
	At       time.Time // when it began
	Key      string
	Left     int64            // objects that are not under the key and should be
	Findings string           // the first of what is not as required; empty: nothing is
	Foreign  string           // why this is the etcd of another cluster than the ring's; empty: it is not known to be
	Under    map[string]int64 // objects that need each key, of whichever resource, those of holds too
	// Against are reasons of the gate against a key, from the clean reading that is kept and this one; no entry: none.
	Against map[string]string
}

// Trouble is the last failure of an action, if the last time it failed.
type Trouble struct {
	At           time.Time
	InARow       int
	Reason, Hint string
}

// World is what was seen.
type World struct {
	Now     time.Time
	Nodes   []Node
	Servers *Servers // nil: not looked at yet
	Proof   *Proof   // the last one; nil: none
	Etcd    *Etcd    // the last reading; nil: none
	// Clean is, by key, when the first clean reading that is kept began.
	Clean   map[string]time.Time
	Trouble map[Action]Trouble
	Settle  time.Duration
	Recheck time.Duration // how old a reading may be while nothing is to be done
}

// Decision is what Next says.
type Decision struct {
	State     Name
	Do        Action
	Reason    string    // a sentence for people
	Hint      string    // what a person is to do; empty: nothing
	Next      time.Time // when the next step is due; zero: when something changes
	Current   Key       // that all nodes have; zero: they differ, or nothing is known
	Keys      []string  // of Record and Forget
	Retirable []string
}

// LongestHold is the longest outage hold of any node.
func (w *World) LongestHold() (longest time.Duration) {
	for _, n := range w.Nodes {
		longest = max(longest, n.OutageHold)
	}
	return longest
}
