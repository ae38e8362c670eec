package gate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// place is an etcd and what was read of it. A store that does not say which it is goes by its endpoints.
type place struct{ cluster, prefixes, name string }

func (p place) String() string {
	if p.name != "" {
		return fmt.Sprintf("the store at %s below %s", evidence.Printable(p.name), evidence.Printable(p.prefixes))
	}
	return fmt.Sprintf("etcd cluster %s below %s", evidence.Printable(p.cluster), evidence.Printable(p.prefixes))
}

// age is how far an etcd had come. None of its numbers falls, save by a restore.
type age struct {
	revision int64
	term     uint64
	members  map[string]evidence.Member // by id
}

func (a age) older(b age) age {
	return age{min(a.revision, b.revision), min(a.term, b.term), merged(a.members, b.members)}
}

func (a age) newer(b age) age {
	return age{max(a.revision, b.revision), max(a.term, b.term), merged(a.members, b.members)}
}

// merged keeps one answer of each member: two of one reading are moments apart.
func merged(a, b map[string]evidence.Member) map[string]evidence.Member {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// places are the ages of a report's etcds by place; of several readings of one, choose says which counts.
func places(r *evidence.Report, choose func(a, b age) age) map[place]age {
	found := map[place]age{}
	for _, source := range r.Sources {
		at := place{cluster: source.Cluster, prefixes: strings.Join(slices.Sorted(slices.Values(source.Prefixes)), ", ")}
		if source.Cluster == unidentified {
			at.name = source.Name
		}
		is := age{source.Revision, source.Term, map[string]evidence.Member{}}
		for _, m := range source.Members {
			is.members[m.ID] = m
		}
		if other, ok := found[at]; ok {
			is = choose(other, is)
		}
		found[at] = is
	}
	return found
}

const restored = "see which snapshot it was restored from; make another report and wait for --settle again"

// sameEtcd: both reports are of the same clusters and prefixes, and none went back in time, as one restored from a
// backup does.
func (c *Case) sameEtcd(v *verdict) {
	then, now := places(c.File.Report, age.newer), places(c.Own, age.older)
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
		case at.cluster != unidentified:
			c.sameMembers(v, at, was.members, is.members)
		}
	}
	for _, at := range slices.SortedFunc(maps.Keys(now), order) {
		if _, read := then[at]; !read {
			v.against(sameFlags, "%s was read now and is not in the report %s", at, c.FileName)
		}
	}
}

// maxSkew is by how many raft entries a member's two numbers may be apart from one moment: it reads them one after the other.
const maxSkew = 8

// behind is by how much a member's raft log is ahead of its revisions. Each revision takes an entry of the log, so this
// never falls; a restore begins the log again and keeps the revision, and it falls by as much as the snapshot's revision.
func behind(m evidence.Member) int64 { return int64(m.RaftIndex) - m.Revision } //nolint:gosec // far below 2^63

// sameMembers: no member's raft log began again. A member that was added has caught up with those that were there; one
// that went does not matter, as long as another one is there still.
func (c *Case) sameMembers(v *verdict, at place, then, now map[string]evidence.Member) {
	if len(then) == 0 || len(now) == 0 {
		v.against("check that each of --endpoints answers, and that etcd's user may ask for its status; then make another report",
			"%s: no member says how far its raft log is, in the report %s or now: a restore in between could not be detected", at, c.FileName)
		return
	}
	furthest, widest, stayed := uint64(0), behind(slices.Collect(maps.Values(then))[0]), false
	for id, was := range then {
		_, there := now[id]
		stayed = stayed || there
		furthest, widest = max(furthest, was.RaftIndex), max(widest, behind(was))
	}
	if !stayed {
		v.against(sameFlags+"; where all members were replaced, make another report and wait for --settle again",
			"%s: none of the members in the report %s answers now: a restore in between could not be detected", at, c.FileName)
		return
	}
	for _, id := range slices.Sorted(maps.Keys(now)) {
		is, name := now[id], evidence.Printable(id)
		was, old := then[id]
		if !old { // a new member has what the others had
			was = evidence.Member{RaftIndex: furthest, Revision: int64(furthest) - widest} //nolint:gosec // far below 2^63
		}
		switch {
		case is.RaftTerm < was.RaftTerm:
			v.against(restored, "%s: its member %s is at raft term %d, and was at %d in the report %s: it was restored meanwhile, or is another", at, name, is.RaftTerm, was.RaftTerm, c.FileName)
		case is.RaftIndex < was.RaftIndex:
			v.against(restored, "%s: its member %s is at raft index %d, and was at %d in the report %s: it was restored meanwhile, or is another", at, name, is.RaftIndex, was.RaftIndex, c.FileName)
		case behind(is)+maxSkew < behind(was):
			v.against(restored, "%s: its member %s is at raft index %d with revision %d, and was at %d with %d in the report %s: its raft log began again, as in a restore",
				at, name, is.RaftIndex, is.Revision, was.RaftIndex, was.Revision, c.FileName)
		}
	}
}
