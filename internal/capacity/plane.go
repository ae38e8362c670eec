package capacity

import (
	"math"
	"time"
)

// Plugin is what one plugin asks of one token, in calls.
type Plugin struct {
	Seal, Open float64 // one of them
	Refresh    float64 // one reading of the ring
	Start      float64 // to connect, log in, read the ring and prove the profile

	ProbeInterval, RefreshInterval time.Duration
	MaxSessions                    int // working sessions; one more is for login and refresh
}

// Probe is one seal and one open under the current key.
func (p Plugin) Probe() float64 { return p.Seal + p.Open }

// Idle is how many calls a second are made when nobody asks for anything.
func (p Plugin) Idle() float64 {
	return p.Probe()/p.ProbeInterval.Seconds() + p.Refresh/p.RefreshInterval.Seconds()
}

// The calls of package hsm; a request for attributes is two, one of them for their lengths. test/simulation/capacity counts
// them.
const (
	refreshCalls  = 4 // C_FindObjectsInit, C_FindObjects until there are no more, C_FindObjectsFinal
	knownCalls    = 2 // CKA_ID
	describeCalls = 2 // all attributes in one request; a token that does not know one of them is asked 18 times more
)

// ForRefresh is one reading of a ring of so many keys that was read before.
func ForRefresh(keys int) float64 { return refreshCalls + knownCalls*float64(keys) }

// ForKey is what a key that is new costs a plugin, beyond the reading of the ring in which it is found: its attributes,
// a seal and an open for its fingerprint (under hmac-kdf one operation, not two), and the same to prove that it works.
func (p Plugin) ForKey() float64 { return describeCalls + 2*p.Probe() }

// Plane is a control plane: nodes with an API server and a plugin each.
type Plane struct {
	Nodes     int
	Restarts  float64 // of each node, a day: API server and plugin
	Rotations float64 // a day
	DEKs      int     // distinct ones in etcd: one for each start of an API server since all was last rewritten, and each rotation
}

const day = 24 * time.Hour

// Idle is the calls a second of all nodes when nobody asks for anything.
func (c Plane) Idle(p Plugin) float64 { return float64(c.Nodes) * p.Idle() }

// Connect is the calls of one node that starts, before its API server reads anything: the plugin connects and probes, and
// has one DEK sealed. They are made one after the other.
func (p Plugin) Connect() float64 { return p.Start + p.Probe() + p.Seal }

// ColdStart is the calls of one node that starts, with all the DEKs opened that its API server finds in etcd.
func (c Plane) ColdStart(p Plugin) float64 { return p.Connect() + float64(c.DEKs)*p.Open }

// ColdStartTime is how long so many nodes that start at one moment take for that, if each has so many DEKs opened at a time.
func (c Plane) ColdStartTime(p Plugin, hsm HSM, nodes, atATime int) time.Duration {
	callers := nodes * min(atATime, p.MaxSessions)
	return hsm.Together(nodes, p.Connect()) + hsm.Together(callers, float64(nodes*c.DEKs)*p.Open/float64(callers))
}

// Rotation is the calls of one rotation on all nodes: each takes up the key, and its API server has a DEK sealed; the DEK
// of each is opened by the others.
func (c Plane) Rotation(p Plugin) float64 {
	n := float64(c.Nodes)
	return n * (p.ForKey() + p.Seal + (n-1)*p.Open)
}

// Day is the calls of all nodes in a day.
func (c Plane) Day(p Plugin) float64 {
	return c.Idle(p)*day.Seconds() + float64(c.Nodes)*c.Restarts*c.ColdStart(p) + c.Rotations*c.Rotation(p)
}

// testSeals are the seals of the self-test and of the first probe of a plugin that connects.
const testSeals = 3

// Seals is how many seals a day are made under the current key: each spends a nonce, of which a key has 2^32 under
// random-nonce GCM (NIST SP 800-38D, section 8.3).
func (c Plane) Seals(p Plugin) float64 {
	n := float64(c.Nodes)
	return n * (day.Seconds()/p.ProbeInterval.Seconds() + c.Restarts*(testSeals+1) + c.Rotations*2)
}

// Nonces is how many seals a key is good for.
const Nonces = 1 << 32

// Lasts is after how many days a key has spent its nonces.
func (c Plane) Lasts(p Plugin) float64 { return Nonces / c.Seals(p) }

// Sessions are those of all nodes: least when nobody asks for anything (one for login and refresh, one that probes), most
// after every plugin was busy, for they stay open.
func (c Plane) Sessions(p Plugin) (least, most int) {
	return 2 * c.Nodes, (p.MaxSessions + 1) * c.Nodes
}

// Planes is how many control planes like this one may share a token that does so many calls a second, if idle they are to
// use no more than the share of it.
func (c Plane) Planes(p Plugin, limit, share float64) int {
	return int(math.Floor(limit * share / c.Idle(p)))
}
