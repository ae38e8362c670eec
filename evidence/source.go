package evidence

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrDamaged: a snapshot file is not one, not a whole one, or not as it was saved.
	ErrDamaged = errors.New("damaged snapshot")
	// ErrNotFound: there is no such object.
	ErrNotFound = errors.New("no such object")
)

// Object is one revision of one key of etcd.
type Object struct {
	Key      []byte // as in etcd: the associated data of the object's encryption
	Path     []byte // the key without the API server's prefix and its slash: secrets/NAMESPACE/NAME
	Value    []byte
	Revision int64 // in which it was written (mod_revision)
	Past     bool  // not the newest revision of its key, or of a key that was deleted since
	Corrects bool  // replaces what was given of its key, if anything was; all objects of a page have it, or none
	Deleted  bool  // of one that Corrects: its key is not there any more; it has no value
}

// Way is how a source is read.
type Way int

const (
	// Pinned gives the state at one revision. Where that is lost to a compaction, the error wraps ErrNotWhole.
	Pinned Way = iota
	// Followed gives each page at a revision of its own, and at the end, with Object.Corrects, whatever was written
	// meanwhile, once for each key: all of it together is the state at Reading.Revision. Whatever keeps it from being so is
	// an error that wraps ErrNotWhole.
	Followed
	// Loose gives each page at a revision of its own, and nothing more: for work that proves nothing, and may take longer
	// than any revision is kept. Its Reading has no revision.
	Loose
)

// Source is an etcd or a snapshot file.
type Source interface {
	// Read calls each with every object below the prefixes, in pages of a few MiB at most, one after the other, in any order of
	// keys. A page belongs to each; the bytes of its objects may be kept and must not be changed. It ends with each's error or the context's.
	// Errors wrap ErrDamaged or ErrNotWhole, or say what could not be reached. A snapshot does not change: it is read in one
	// way only, whatever way says. Most callers call ReadWhole.
	Read(ctx context.Context, way Way, each func(page []Object) error) (Reading, error)
	// Find returns the newest revision of a key. The error wraps ErrNotFound when there is none.
	Find(ctx context.Context, key string) (Object, error)
}

// Reading says what a Read has covered. Field names are a contract.
type Reading struct {
	Name     string `json:"name"`     // endpoints, or the file's path
	Revision int64  `json:"revision"` // the objects are those of this revision, no more and no fewer
	// Cluster is etcd's cluster id in hex; a snapshot does not know it. etcd makes it of its members' peer addresses and
	// --initial-cluster-token alone: one that was restored in its place has the same, and so has another with such addresses.
	Cluster string `json:"cluster,omitempty"`
	// Term is etcd's raft term, which never falls, save by a restore, which begins again; a snapshot does not know it.
	Term uint64 `json:"term,omitempty"`
	// Prefixes are those of the API server below which everything was read.
	Prefixes []string `json:"prefixes"`
	// SHA256 is what the snapshot's own integrity hash says and its bytes gave; empty: there is none to check.
	SHA256 string `json:"sha256,omitempty"`
	// From is the revision from which on etcd was followed, when compaction made a reading at one revision impossible; else 0.
	From int64 `json:"from,omitempty"`
	// Changed counts the objects below Prefixes that were written or deleted between From and Revision. They are counted as
	// they were at Revision, as all others are.
	Changed int64 `json:"changed,omitempty"`
	// Elsewhere counts objects that an API server has encrypted (k8s:enc:) and that are not below Prefixes: they are in no
	// other number. Of a snapshot, older revisions are in it.
	Elsewhere int64 `json:"elsewhere,omitempty"`
	// Unreadable are the ranges of etcd's keys that were not read because etcd refuses them to this client, each as RangeText
	// gives it, in order. What lies there is in no number: a report with such a range is no evidence for it. A snapshot has none.
	Unreadable []string `json:"unreadable"`
	// Members are what the members of a live etcd that answered said of themselves.
	Members []Member `json:"members,omitempty"`
	// ClusterUIDs are the UIDs of the kube-system namespaces below Prefixes, which name the Kubernetes clusters that keep
	// their objects here; UnknownCluster stands for a namespace that is encrypted or cannot be decoded.
	ClusterUIDs []string `json:"clusterUIDs,omitzero"` // nil: not looked for, as by a verification
	// Clock is the newest renewTime of a Lease in kube-system, RFC 3339: what the clock of the control-plane node said
	// that is furthest ahead. Empty: there is no such Lease in plain text.
	Clock string `json:"clock,omitempty"`
	// OutageHold is the longest outageHold that a hsm-kms operate of this cluster publishes, as Go writes a duration. Empty: no
	// Lease in plain text has one.
	OutageHold string   `json:"outageHold,omitempty"`
	Notes      []string `json:"notes,omitempty"` // what a reader of the report must know
}

// Member is what a member of etcd said of itself in one answer, at the end of the reading. RaftIndex and RaftTerm never
// fall, save by a restore, which begins both again, and for a moment after a crash: what a member had applied and not yet
// written to its disk it applies again. Field names are a contract.
type Member struct {
	ID        string `json:"id"`        // hex
	Revision  int64  `json:"revision"`  // newest that it has applied
	RaftIndex uint64 `json:"raftIndex"` // applied
	RaftTerm  uint64 `json:"raftTerm"`
}

// RangeText is a range of etcd's keys, from (included) to to (excluded), as Reading.Unreadable has it: FROM..TO. An empty
// from is the lowest key, an empty to is no end. What is not printable ASCII, backslashes, and dots beside another dot or
// at an end are \xNN: each range has one text and each text one range, so that texts can be compared.
func RangeText(from, to string) string { return rangeEnd(from) + ".." + rangeEnd(to) }

func rangeEnd(key string) string {
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		lonely := i > 0 && i < len(key)-1 && key[i-1] != '.' && key[i+1] != '.'
		if c <= ' ' || c > '~' || c == '\\' || c == '.' && !lonely {
			fmt.Fprintf(&b, `\x%02x`, c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Progress is told how far a piece of work is; total 0: nobody knows. It is called from one goroutine at a time.
type Progress func(stage string, done, total int64)

// PathOf returns the part of an etcd key that follows one of the API server's prefixes (such as /registry) and its
// slash, and whether the key is below one of them at all. Of prefixes that contain each other the longest counts.
func PathOf(prefixes []string, key []byte) (path []byte, ours bool) {
	longest := -1
	for _, prefix := range prefixes {
		n := len(prefix)
		if n > longest && len(key) > n && key[n] == '/' && string(key[:n]) == prefix {
			path, longest = key[n+1:], n
		}
	}
	return path, longest >= 0
}

// CleanPrefix gives a prefix the form that PathOf takes: a slash in front, as kube-apiserver adds it, and none at the end.
func CleanPrefix(prefix string) string {
	return "/" + strings.Trim(prefix, "/")
}

// ElsewhereNote says what Reading.Elsewhere counts.
func ElsewhereNote(n int64, where string) string {
	return fmt.Sprintf("encrypted objects %s that are not below the prefixes, and in no other number: %d. Another API server's? See --prefix", where, n)
}
