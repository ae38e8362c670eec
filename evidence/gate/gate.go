// Package gate judges whether a key that was current may be destroyed: whether nothing in etcd, and nothing in the
// snapshots that were named, needs it. The judgement is pure: reports, times and a key_id go in, reasons against it
// come out. Reading a report's file, strictly, may live here too; etcd, tokens and output may not.
//
// What it demands (section 8 of the design): two clean reports of the same live etcd, one from a file and one made now,
// at least Settle apart; the first made after the key's successor became current; and for every snapshot that no
// revision in it is under the key. Destruction is for ever, so whatever is unclear is a reason against it, and all
// reasons are told at once.
package gate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// DefaultSettle is how far apart the two reports must be unless the operator says otherwise: kube-apiserver keeps a DEK
// in memory for that long (k8s.io/apiserver, envelope/kmsv2: cacheTTL), and one that is cut off from its HSM may
// still write under the old key.
const DefaultSettle = 24 * time.Hour

// Refusal is one reason against the destruction, and what to do about it. Field names are a contract.
type Refusal struct {
	Reason string `json:"reason"`
	Hint   string `json:"hint"`
}

// Case is what is judged.
type Case struct {
	KeyID string
	// Successor is when the key that came after KeyID became current: from then on API servers learn of it. Zero: it is
	// not known.
	Successor time.Time
	// Others are the other key_ids of the ring that the tokens hold. The etcd of a cluster that uses the ring has something
	// under one of them.
	Others    []string
	Settle    time.Duration
	FileName  string // of File, for people
	File      *File
	Own       *evidence.Report   // of the same etcd, made now
	Snapshots []*evidence.Report // one for each snapshot that was named
}

// Judge returns everything that speaks against destroying the key; nothing: it may be destroyed.
func (c *Case) Judge() []Refusal {
	file := "the report " + c.FileName
	v := &verdict{keyID: c.KeyID}
	v.whole(file, c.File.Report)
	v.clean(file, c.File.Report, anotherReport)
	c.times(v)
	c.sameEtcd(v)
	v.clean("etcd now", c.Own, rewrite)
	v.ours(file, c.File.Report, c.Others)
	v.ours("etcd now", c.Own, c.Others)
	for _, snapshot := range c.Snapshots {
		v.snapshot(snapshot)
	}
	return v.refusals
}

// What to do, where several reasons want the same.
const (
	anotherReport = "rewrite what is under the key (hsm-kms etcd migrate), then make another report: hsm-kms etcd report -o json"
	rewrite       = "rewrite it (hsm-kms etcd migrate), see that every API server writes under the current key, then make another report: hsm-kms etcd report -o json"
	sameFlags     = "say the same --endpoints, --etcd-servers-overrides and --prefix to etcd report and to keys retire: those of the API servers"
)

const keepKey = "keep the key for as long as that snapshot is to be restorable, or delete the snapshot for good"

// verdict collects the reasons.
type verdict struct {
	keyID    string
	refusals []Refusal
}

func (v *verdict) against(hint, format string, args ...any) {
	v.refusals = append(v.refusals, Refusal{fmt.Sprintf(format, args...), hint})
}

// whole: the report tells of every resource.
func (v *verdict) whole(name string, r *evidence.Report) {
	if len(r.Restricted) > 0 {
		v.against("make it without --resources: hsm-kms etcd report -o json", "%s is restricted to %s: it says nothing of other resources",
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
			v.against("name every --etcd-prefix of every API server: --prefix /registry,/other; or see whose they are, and delete them",
				"%s: %s of an API server that are not below %s, and may be under any key", name, counted(source.Elsewhere, "encrypted object"),
				evidence.Printable(strings.Join(source.Prefixes, ", ")))
		}
	}
	if r.Objects == 0 {
		v.against(sameFlags, "%s: no object at all was found, so it was looked for in the wrong place", name)
	}
}

// ours: something is under a key of the ring, or else this is an etcd of those who never used it, whose silence says nothing.
func (v *verdict) ours(name string, r *evidence.Report, others []string) {
	seen := slices.ContainsFunc(append([]string{v.keyID}, others...), func(keyID string) bool { n, _ := under(r.Resources, keyID); return n > 0 })
	if !seen && r.Objects > 0 {
		v.against("see that --endpoints, --etcd-servers-overrides and --prefix are those of the API servers that use this ring, and that these have written something since",
			"%s: no object is under any key of the ring: this does not seem to be the etcd of the API servers that use it", name)
	}
}

// under counts the objects under a key_id, by whichever provider, and says of which resources.
func under(resources []evidence.Resource, keyID string) (n int64, where string) {
	var parts []string
	for _, resource := range resources {
		of := int64(0)
		for _, key := range resource.Keys {
			if key.KeyID == keyID {
				of += key.Objects
			}
		}
		if of > 0 {
			n += of
			parts = append(parts, fmt.Sprintf("%s %d", evidence.Printable(resource.Resource), of))
		}
	}
	const shown = 5
	if more := len(parts) - shown; more > 0 {
		parts = append(parts[:shown], fmt.Sprintf("%d more resources", more))
	}
	return n, strings.Join(parts, ", ")
}

// times: the file's reading began after the successor was current, and before now by Settle at least.
func (c *Case) times(v *verdict) {
	began, err := time.Parse(time.RFC3339Nano, c.Own.Time)
	if err != nil {
		v.against("", "the time of this reading, %q, is not one", c.Own.Time)
		return
	}
	again := "make another report now, and come back with it after --settle: hsm-kms etcd report -o json"
	switch {
	case c.Successor.IsZero():
		v.against("rotate once more, and make another report then: hsm-kms keys rotate", "no key that followed %s says when it became current", v.keyID)
	case !c.File.Time.After(c.Successor):
		v.against(again, "the report %s was made at %s, before the key that followed %s was current (%s): API servers may have written under it since",
			c.FileName, second(c.File.Time), v.keyID, second(c.Successor))
	}
	switch apart := began.Sub(c.File.Time); {
	case apart < 0:
		v.against("set the clocks right, then make another report", "the report %s is from the future: it was made at %s, and this machine's clock says %s",
			c.FileName, second(c.File.Time), second(began))
	case apart < c.Settle:
		v.against("come back after "+second(c.File.Time.Add(c.Settle)), "the report %s was made %s ago, and %s (--settle) must lie between it and now: an API server may still write under the key",
			c.FileName, apart.Round(time.Second), c.Settle)
	}
}

// place is an etcd and what was read of it.
type place struct{ cluster, prefixes string }

func (p place) String() string {
	return fmt.Sprintf("etcd cluster %s below %s", evidence.Printable(p.cluster), evidence.Printable(p.prefixes))
}

// age is how far an etcd had come. Neither falls, save by a restore.
type age struct {
	revision int64
	term     uint64
}

func (a age) older(b age) age { return age{min(a.revision, b.revision), min(a.term, b.term)} }
func (a age) newer(b age) age { return age{max(a.revision, b.revision), max(a.term, b.term)} }

// places are the ages of a report's etcds by place; of several readings of one, choose says which counts.
func places(r *evidence.Report, choose func(a, b age) age) map[place]age {
	found := map[place]age{}
	for _, source := range r.Sources {
		at := place{source.Cluster, strings.Join(slices.Sorted(slices.Values(source.Prefixes)), ", ")}
		is := age{source.Revision, source.Term}
		if other, ok := found[at]; ok {
			is = choose(other, is)
		}
		found[at] = is
	}
	return found
}

// sameEtcd: both reports are of the same clusters and prefixes, and none went back in time, as one restored from a backup
// does. A restored one that was written past the file's revision shows in its raft term, if there were elections before.
func (c *Case) sameEtcd(v *verdict) {
	then, now := places(c.File.Report, age.newer), places(c.Own, age.older)
	const restored = "see which snapshot it was restored from; make another report and wait for --settle again"
	order := func(a, b place) int { return cmp.Compare(a.String(), b.String()) }
	for _, at := range slices.SortedFunc(maps.Keys(then), order) {
		is, read := now[at]
		switch was := then[at]; {
		case !read:
			v.against(sameFlags, "the report %s is of %s, which was not read now", c.FileName, at)
		case is.revision < was.revision:
			v.against(restored, "%s is at revision %d, and was at %d in the report %s: it was restored meanwhile, or is another", at, is.revision, was.revision, c.FileName)
		case is.term < was.term:
			v.against(restored, "%s is at raft term %d, and was at %d in the report %s: it was restored meanwhile, or is another", at, is.term, was.term, c.FileName)
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(now), order) {
		if _, read := then[at]; !read {
			v.against(sameFlags, "%s was read now and is not in the report %s", at, c.FileName)
		}
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
