package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
)

const (
	// maxObjects bounds a reading. etcd is made for 8 GiB, and an object of Kubernetes has about 1 kB.
	maxObjects = 10_000_000
	// maxWait bounds the time in which a reading waits for etcd, in all: a million objects take half a minute.
	maxWait = 30 * time.Minute
)

// reader is one Read. Several streams read a span of it.
type reader struct {
	etcd       *Etcd
	way        evidence.Way
	emit       func([]evidence.Object) error
	spans      []span
	unreadable []keyRange
	pinned     int64 // revision that is asked for; 0: the newest
	follower   *follower
	total      int64 // objects below the prefixes that are expected
	// Of the first answer, before any stream reads.
	cluster uint64
	term    uint64
	known   bool // cluster and term are

	mu      sync.Mutex       // guards the fields below
	newest  int64            // revision that etcd has told
	waited  time.Duration    // for etcd, of all streams
	reading evidence.Reading // as far as it is known
	outside evidence.Ledger  // of Elsewhere
	objects int64
	read    int64 // of them, in the span that is read
	done    int64 // of them, below the prefixes
}

// Read implements evidence.Source.
func (e *Etcd) Read(ctx context.Context, way evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	r := &reader{etcd: e, way: way, outside: evidence.NewLedger(way == evidence.Followed)}
	read := func(ctx context.Context, emit func([]evidence.Object) error) error {
		r.emit = emit
		if err := r.run(ctx); err != nil {
			return fmt.Errorf("reading etcd: %w", err)
		}
		return nil
	}
	if err := evidence.Ahead(ctx, read, each); err != nil {
		return evidence.Reading{}, err
	}
	return r.finish(), nil
}

// finish says what was read. r.mu is held, or no stream reads any more.
func (r *reader) finish() evidence.Reading {
	reading := &r.reading
	reading.Name, reading.Prefixes, reading.Unreadable = r.etcd.name, r.etcd.cfg.Prefixes, []string{}
	for _, hidden := range r.unreadable {
		reading.Unreadable = append(reading.Unreadable, hidden.text())
	}
	reading.Cluster, reading.Term = strconv.FormatUint(r.cluster, 16), r.term
	if reading.From > 0 {
		reading.Notes = append(reading.Notes, fmt.Sprintf(
			"etcd was compacted while it was read, and so it was followed from revision %d to %d: %d objects were written or deleted meanwhile, and all are counted as they were at %d",
			reading.From, reading.Revision, reading.Changed, reading.Revision))
	}
	if reading.Elsewhere > 0 {
		reading.Notes = append(reading.Notes, evidence.ElsewhereNote(reading.Elsewhere, "in this etcd"))
	}
	if len(reading.Unreadable) > 0 {
		const shown = 500
		text := strings.Join(reading.Unreadable, ", ")
		if len(text) > shown {
			text = text[:shown] + "..."
		}
		reading.Notes = append(reading.Notes, "this client of etcd may not read all keys: what an API server keeps in the ranges (FROM..TO) "+text+" was not seen")
	}
	return *reading
}

// run reads all spans. r.mu is held, or no stream reads.
func (r *reader) run(ctx context.Context) error {
	if err := r.etcd.sameCluster(ctx); err != nil {
		return err
	}
	if err := r.access(ctx); err != nil {
		return lost(err)
	}
	if r.way == evidence.Followed {
		if err := r.follow(ctx); err != nil {
			return err
		}
		defer r.follower.stop()
	}
	for i := range r.spans {
		if err := r.readSpan(ctx, &r.spans[i]); err != nil {
			return lost(err)
		}
	}
	switch r.way {
	case evidence.Pinned:
		r.reading.Revision = r.pinned
	case evidence.Followed:
		if err := r.correct(ctx); err != nil {
			return err
		}
	}
	members, silent := r.etcd.members(ctx)
	r.reading.Members = members
	if len(silent) > 0 {
		r.reading.Notes = append(r.reading.Notes, "not all members of etcd said how far their logs go: "+evidence.Printable(strings.Join(silent, ", ")))
	}
	return nil
}

// lost says of a compaction what it means for the reading.
func lost(err error) error {
	if errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("%w: %w", evidence.ErrNotWhole, err)
	}
	return err
}

// get asks etcd once, and checks what all answers must have.
func (r *reader) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r.mu.Lock()
	floor := r.newest
	r.mu.Unlock()
	began := time.Now()
	resp, err := r.etcd.get(ctx, key, opts...)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waited += time.Since(began); err == nil && r.waited > maxWait {
		err = fmt.Errorf("etcd took more than %s for its answers", maxWait)
	}
	if err != nil {
		return nil, err
	}
	return resp, r.check(resp.Header, floor)
}

// check: answers of two clusters make no reading, and neither do those of an etcd that goes back: floor is the newest
// revision that it had told when it was asked. The answers to two streams may come in any order. r.mu is held.
func (r *reader) check(header *etcdserverpb.ResponseHeader, floor int64) error {
	switch revision := header.GetRevision(); {
	case r.known && header.GetClusterId() != r.cluster:
		return otherCluster(r.cluster, header.GetClusterId(), "one of --endpoints")
	case revision < floor || revision <= 0:
		return r.etcd.broken("it is at revision %d, and was at %d", revision, floor)
	default:
		r.newest = max(r.newest, revision)
	}
	if !r.known {
		r.cluster, r.term, r.known = header.GetClusterId(), header.GetRaftTerm(), true
	}
	return nil
}

// readSpan reads a span, at the pinned revision if there is one. r.mu is held, or no stream reads but those that it waits for.
func (r *reader) readSpan(ctx context.Context, s *span) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.read = 0
	parts := newParts(s.keyRange)
	var streams sync.WaitGroup
	for range r.streams(s) {
		one := &stream{reader: r, span: s, parts: parts, limit: firstPage}
		streams.Go(func() {
			if one.run(ctx) != nil {
				cancel() // the first error stops the others
			}
		})
	}
	streams.Wait()
	switch {
	case parts.err != nil:
		return parts.err
	case r.pinned > 0 && r.countsKeys() && r.read != s.count:
		return r.etcd.broken("it counted %d keys in %s, and gave %d", s.count, s.text(), r.read)
	}
	return nil
}

// take counts a page of a span, and checks what can be checked of it before it is used.
func (r *reader) take(s *span, kvs []*mvccpb.KeyValue) error {
	n := int64(len(kvs))
	r.mu.Lock()
	r.read += n
	r.objects += n
	more, tooMany := r.read > s.count, r.objects > maxObjects
	r.mu.Unlock()
	switch {
	case tooMany:
		return errTooMany()
	case more && r.pinned > 0 && r.countsKeys():
		return r.etcd.broken("it counted %d keys in %s, and gives more", s.count, s.text())
	case r.follower != nil:
		return r.follower.failed()
	}
	return nil
}

// countsKeys reports whether the counts of answers can be relied on: a store that is no etcd (kine) has a cluster id of 0,
// and counts in its own way.
func (r *reader) countsKeys() bool { return r.cluster != 0 }

// countOutside counts what an API server has encrypted and is not below the prefixes: a prefix that was forgotten, or an
// API server that nobody thought of, must not look as if there were nothing.
func (r *reader) countOutside(page []*mvccpb.KeyValue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kv := range page {
		if stored.IsEncrypted(kv.GetValue()) {
			r.outside.Put(&evidence.Object{Key: kv.GetKey()}, &r.reading.Elsewhere)
		}
	}
}

func (r *reader) send(page []*mvccpb.KeyValue) error {
	if len(page) == 0 {
		return nil
	}
	objects := make([]evidence.Object, 0, len(page))
	for _, kv := range page {
		path, _ := evidence.PathOf(r.etcd.cfg.Prefixes, kv.GetKey())
		objects = append(objects, evidence.Object{Key: kv.GetKey(), Path: path, Value: kv.GetValue(), Revision: kv.GetModRevision()})
	}
	if err := r.emit(objects); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += int64(len(page))
	if r.etcd.progress != nil {
		r.etcd.progress("reading etcd", r.done, max(r.done, r.total))
	}
	return nil
}

// follow begins to follow what is written. Ranges that may be read may be watched. r.mu is held, or no stream reads yet.
func (r *reader) follow(ctx context.Context) error {
	ranges := []keyRange{{lowest, ""}}
	if len(r.unreadable) > 0 {
		ranges = nil
		for _, s := range r.spans {
			ranges = append(ranges, s.keyRange)
		}
	}
	f, err := follow(ctx, r.etcd, ranges, len(r.unreadable) == 0)
	if err != nil {
		return err
	}
	r.follower, r.reading.From = f, f.from
	if f.header.GetClusterId() != r.cluster {
		f.stop()
		return otherCluster(r.cluster, f.header.GetClusterId(), "one of --endpoints")
	}
	// The member that tells of writes may be behind the one that was read; no page may be behind it.
	f.mu.Lock() // events come already
	defer f.mu.Unlock()
	r.newest = max(r.newest, f.highest)
	return nil
}

// correct gives what was written while the pages were read. r.mu is held, or no stream reads any more.
func (r *reader) correct(ctx context.Context) error {
	changes, revision, err := r.follower.settle(ctx, r.newest)
	if err != nil {
		return err
	}
	r.reading.Revision = revision
	var page []evidence.Object
	weight := 0
	flush := func() error {
		if len(page) == 0 {
			return nil
		}
		err := r.emit(page)
		page, weight = nil, 0
		return err
	}
	keys := make([]string, 0, len(changes))
	for key := range changes {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		change := changes[key]
		o := evidence.Object{Key: []byte(key), Value: change.value, Revision: change.revision, Corrects: true, Deleted: change.deleted}
		path, ours := evidence.PathOf(r.etcd.cfg.Prefixes, o.Key)
		if !ours {
			count := &r.reading.Elsewhere
			if o.Deleted || !stored.IsEncrypted(o.Value) {
				count = nil
			}
			r.outside.Put(&o, count)
			continue
		}
		o.Path = path
		r.reading.Changed++
		page, weight = append(page, o), weight+len(o.Key)+len(o.Value)
		if weight >= pageBytes || len(page) == firstPage {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
