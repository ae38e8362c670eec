// Package gate judges whether a key that was current may be destroyed: whether nothing in etcd, and nothing in the
// snapshots that were named, needs it. The judgement is pure: reports, times and a key_id go in, reasons against it
// come out. It also reads the file of a report, strictly. It asks no etcd and no token, and keeps nothing.
//
// What it demands (section 8 of the design): two clean reports of the same live etcd, one from a file and one made now,
// at least Settle apart; the first made after the key's successor became current; and for every snapshot that no
// revision in it is under the key. Destruction is forever, so whatever is unclear is a reason against it, and all
// reasons are told at once.
//
// It depends on envelope for key_ids, on evidence for the reports and on evidence/migrate for the outcomes. Functions keep
// nothing and may be called from any number of goroutines.
package gate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
)

// DefaultSettle is how far apart the two reports must be unless the operator says otherwise: kube-apiserver keeps a DEK
// in memory for that long (k8s.io/apiserver, envelope/kmsv2: cacheTTL), and one that is cut off from its HSM may
// still write under the old key.
const DefaultSettle = 24 * time.Hour

// SettleWith is how far apart the two reports must be where a plugin may answer in an outage hold for as long as hold: its API
// server may write under the key until the hold is over, and keep a DEK for DefaultSettle then.
func SettleWith(settle, hold time.Duration) time.Duration {
	if hold <= 0 {
		return settle
	}
	return max(settle, DefaultSettle+hold)
}

// LongestHold is the longest outage hold that nodes publish in the etcd of the report.
func LongestHold(r *evidence.Report) (longest time.Duration) {
	for _, source := range r.Sources {
		if hold, err := time.ParseDuration(source.OutageHold); err == nil {
			longest = max(longest, hold)
		}
	}
	return longest
}

// Refusal is one reason against the destruction, and what to do about it. Field names are a contract.
type Refusal struct {
	Reason string `json:"reason"`
	Hint   string `json:"hint"`
}

// Case is what is judged: of a key that was current the reports File and Own and the snapshots; of a pending one, whose
// Pending is set, Own alone.
type Case struct {
	KeyID string
	// Pending is about a key that was never current by this machine's clock; nil: the key was current.
	Pending *Pending
	// Successor is when the key that came after KeyID became current: from then on API servers learn of it. Zero: it is
	// not known.
	Successor time.Time
	// WrittenRing is the ring that API servers write under, when that of the key is only read. Then File is of a migration that
	// has shown it of each of them, and Successor is not looked at: the report of that migration was made after that.
	WrittenRing string
	// Others are the other key_ids of the ring that the tokens hold, and those of WrittenRing. The etcd of a cluster that uses
	// the ring has something
	// under one of them.
	Others []string
	// Cluster is the UID of the cluster that the ring belongs to; empty: the ring is bound to none.
	Cluster   string
	Accepted  Accepted
	Settle    time.Duration
	FileName  string // of File, for people
	File      *File
	Own       *evidence.Report   // of the same etcd, made now
	Snapshots []*evidence.Report // one for each snapshot that was named
}

// Pending is when a key is to become current, and how long before that no node's clock may be.
type Pending struct {
	Activation time.Time
	Margin     time.Duration
}

// Accepted is what the operator answers for, because it cannot be proven.
type Accepted struct {
	Unreadable   []string // ranges of etcd that the client may not read, as Reading.Unreadable has them
	Unidentified bool     // a store behind the etcd API that says nothing of itself
	SoleCluster  bool     // that no other cluster uses the ring
	TokensLost   []string // names of tokens that exist no longer
}

// List is what was accepted, in words that are a contract.
func (a Accepted) List() []string {
	list := []string{}
	if a.SoleCluster {
		list = append(list, "sole-cluster")
	}
	if a.Unidentified {
		list = append(list, "unidentified-store")
	}
	for _, name := range slices.Sorted(slices.Values(a.TokensLost)) {
		list = append(list, "token-lost "+name)
	}
	for _, r := range slices.Sorted(slices.Values(a.Unreadable)) {
		list = append(list, "unreadable "+r)
	}
	return slices.Compact(list)
}

// Judge returns everything that speaks against destroying the key; nothing: it may be destroyed.
func (c *Case) Judge() []Refusal {
	v := &verdict{keyID: c.KeyID, accepted: c.Accepted}
	if c.Pending != nil {
		c.clocks(v)
		v.clean("etcd now", c.Own, becomeCurrent)
		v.ours("etcd now", c.Own, c.Others, withoutEtcd)
		c.clusters(v)
		return v.refusals
	}
	file := "the report " + c.FileName
	v.whole(file, c.File.Report)
	v.clean(file, c.File.Report, anotherReport)
	c.moved(v)
	c.times(v)
	c.sameEtcd(v)
	v.clean("etcd now", c.Own, rewrite)
	v.ours(file, c.File.Report, c.Others, "")
	v.ours("etcd now", c.Own, c.Others, "")
	c.clusters(v)
	for _, snapshot := range c.Snapshots {
		v.snapshot(snapshot)
	}
	return v.refusals
}

// Hints that several reasons share.
const (
	anotherReport = "rewrite what is under the key (hsm-kms etcd migrate), then make another report: hsm-kms etcd report -o json"
	rewrite       = "rewrite it (hsm-kms etcd migrate), check that every API server writes under the current key, then make another report: hsm-kms etcd report -o json"
	becomeCurrent = "let it become current, then rotate again; if it is destroyed, what is under it is lost"
	withoutEtcd   = "; where nothing was ever written under the ring: --no-etcd"
	sameFlags     = "give the same --endpoints, --etcd-servers-overrides and --prefix to etcd report and to keys retire: those of the API servers"
)

const keepKey = "keep the key for as long as that snapshot is to be restorable"

// verdict collects the reasons.
type verdict struct {
	keyID    string
	accepted Accepted
	refusals []Refusal
}

func (v *verdict) against(hint, format string, args ...any) {
	v.refusals = append(v.refusals, Refusal{fmt.Sprintf(format, args...), hint})
}

// whole: the report is about every resource.
func (v *verdict) whole(name string, r *evidence.Report) {
	if len(r.Restricted) > 0 {
		v.against("make it without --resources: hsm-kms etcd report -o json", "%s is restricted to %s: it does not cover other resources",
			name, evidence.Printable(strings.Join(r.Restricted, ", ")))
	}
}

// clean: nothing is under the key, now or, in a snapshot, in an older revision; nothing is undecodable, which could be
// under any key; and something was seen at all.
func (v *verdict) clean(name string, r *evidence.Report, advice string) {
	if n, where := under(r.Resources, v.keyID); n > 0 {
		v.against(advice, "%s: %s under %s (%s)", name, counted(n, "object"), v.keyID, where)
	}
	if n, where := under(r.History, v.keyID); n > 0 {
		v.against(advice, "%s: %s under %s (%s)", name, counted(n, "past revision"), v.keyID, where)
	}
	if r.Undecodable > 0 {
		v.against("see what they are with: hsm-kms etcd report; docs/evidence.md says what to do about them",
			"%s: %s undecodable, which may be under any key", name, counted(r.Undecodable, "object"))
	}
	past := int64(0)
	for _, resource := range r.History {
		past += resource.Undecodable
	}
	if past > 0 {
		v.against(advice, "%s: %s undecodable, which may be under any key", name, counted(past, "past revision"))
	}
	for _, source := range r.Sources {
		if source.Elsewhere > 0 {
			v.against("name every --etcd-prefix of every API server: --prefix /registry,/other",
				"%s: %s of an API server that are not below %s, and may be under any key", name, counted(source.Elsewhere, "encrypted object"),
				evidence.Printable(strings.Join(source.Prefixes, ", ")))
		}
	}
	v.read(name, r)
	if r.Objects == 0 {
		v.against(sameFlags, "%s: no object at all was found, so it was looked for in the wrong place", name)
	}
}

// read: all that could be under the key was read, from a store that says which it is; or the operator answers for the rest.
func (v *verdict) read(name string, r *evidence.Report) {
	for _, source := range r.Sources {
		for _, hidden := range source.Unreadable {
			if !slices.Contains(v.accepted.Unreadable, hidden) {
				v.against(fmt.Sprintf("name a client of etcd that may read all keys; where you know that no API server keeps anything there: --accept-unreadable '%s'", hidden),
					"%s: the keys %s could not be read, and what lies there may be under any key", name, hidden)
			}
		}
		if source.Cluster == unidentified && !v.accepted.Unidentified {
			v.against("check that the endpoints are those of the API servers, and that nothing was restored since the key was last used; then add: --accept-unidentified-store",
				"%s: the store at %s does not identify itself (cluster id 0, as kine does): another store, or a restored one, could not be detected", name, evidence.Printable(source.Name))
		}
	}
}

// unidentified is the cluster id of a store that is no etcd and says nothing of itself.
const unidentified = "0"

// ours: something is under a key of the ring, or else this is an etcd of those who never used it, whose silence says nothing.
func (v *verdict) ours(name string, r *evidence.Report, others []string, more string) {
	seen := slices.ContainsFunc(append([]string{v.keyID}, others...), func(keyID string) bool { n, _ := under(r.Resources, keyID); return n > 0 })
	if !seen && r.Objects > 0 {
		v.against("check that --endpoints, --etcd-servers-overrides and --prefix are those of the API servers that use this ring, and that these have written something since"+more,
			"%s: no object is under any key of the ring: this does not seem to be the etcd of the API servers that use it", name)
	}
}

// under counts the objects that need the key, by whichever provider, and says of which resources. What was written in an
// outage hold stands under another text and needs the key all the same.
func under(resources []evidence.Resource, keyID string) (n int64, where string) {
	var parts []string
	for _, resource := range resources {
		of, held := int64(0), int64(0)
		for _, key := range resource.Keys {
			if envelope.KeyOf(key.KeyID) != keyID {
				continue
			}
			if of += key.Objects; key.KeyID != keyID {
				held += key.Objects
			}
		}
		if of == 0 {
			continue
		}
		n += of
		part := fmt.Sprintf("%s %d", evidence.Printable(resource.Resource), of)
		if held > 0 {
			part += fmt.Sprintf(", of which %d under %s/hold", held, keyID)
		}
		parts = append(parts, part)
	}
	const shown = 5
	if more := len(parts) - shown; more > 0 {
		parts = append(parts[:shown], fmt.Sprintf("%d more resources", more))
	}
	return n, strings.Join(parts, ", ")
}

// times: the file's reading began after the successor was current, by this machine's clock and by those of the nodes, and
// before now by Settle at least.
func (c *Case) times(v *verdict) {
	began, err := time.Parse(time.RFC3339Nano, c.Own.Time)
	if err != nil {
		v.against("", "the time of this reading, %q, is not one", c.Own.Time)
		return
	}
	clock := Clock(c.File.Report)
	again := "make another report now, and come back with it after --settle: hsm-kms etcd report -o json"
	switch {
	case c.WrittenRing != "": // see moved
	case c.Successor.IsZero():
		v.against("rotate once more, and make another report then: hsm-kms keys rotate", "no key after %s has an activation time", v.keyID)
	case !c.File.Time.After(c.Successor):
		v.against(again, "the report %s was made at %s, before the key that followed %s was current on every node (%s): API servers may have written under it since",
			c.FileName, second(c.File.Time), v.keyID, second(c.Successor))
	case !clock.IsZero() && clock.Add(maxJitter).Before(c.Successor): // this machine's own clock may have been ahead
		v.against("set this machine's clock right; when the key that followed is current on every node, make another report: hsm-kms etcd report -o json",
			"when the report %s was made, the clocks of the control-plane nodes said %s by their Leases, before the key that followed %s was current on every node (%s)",
			c.FileName, second(clock), v.keyID, second(c.Successor))
	}
	switch apart := began.Sub(c.File.Time); {
	case apart < 0:
		v.against("set the clocks right, then make another report", "the report %s is from the future: it was made at %s, and this machine's clock says %s",
			c.FileName, second(c.File.Time), second(began))
	case apart < c.Settle:
		v.against("come back after "+second(c.File.Time.Add(c.Settle)), "the report %s was made %s ago, and %s (--settle) must lie between it and now: an API server may still write under the key",
			c.FileName, apart.Round(time.Second), c.Settle)
	default:
		c.nodesClocks(v)
	}
}

// snapshot: nothing in the file needs the key, in any revision, and the file is all that was saved.
func (v *verdict) snapshot(r *evidence.Report) {
	name := "the snapshot " + evidence.Printable(r.Sources[0].Name)
	v.clean(name, r, keepKey)
	if r.Sources[0].SHA256 == "" {
		v.against("save one with: etcdctl snapshot save FILE", "%s has no integrity hash, and what stands in the write-ahead log alone is not in it", name)
	}
}

func counted(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func second(t time.Time) string { return t.UTC().Format(time.RFC3339) }
