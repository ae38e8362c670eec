package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// Pages are sized so that both ends hold a few MiB: the first is small, the next follow what its objects weighed.
const (
	firstPage = 256     // objects
	largePage = 4096    // objects
	pageBytes = 4 << 20 // what a page aims at
)

// segment is a range that was read at one revision, from a key up to the next segment's or the range's end.
type segment struct {
	keyRange
	revision int64
}

// reader is one Read.
type reader struct {
	etcd     *Etcd
	emit     func([]evidence.Object) error
	limit    int64
	revision int64 // read at; 0: the newest, which the next answer tells
	cluster  uint64
	term     uint64 // of the first answer
	known    bool   // cluster and term are
	outside
	members  []evidence.Member
	silent   []string // endpoints that said nothing of themselves
	segments []segment
	done     int64
	total    int64
	changed  int64
}

// Read implements evidence.Source.
func (e *Etcd) Read(ctx context.Context, each func([]evidence.Object) error) (evidence.Reading, error) {
	r := &reader{etcd: e, limit: firstPage}
	read := func(ctx context.Context, emit func([]evidence.Object) error) error {
		r.emit = emit
		if err := e.sameCluster(ctx); err != nil {
			return fmt.Errorf("reading etcd: %w", err)
		}
		if err := r.run(ctx); err != nil {
			return fmt.Errorf("reading etcd: %w", err)
		}
		r.members, r.silent = e.members(ctx)
		return nil
	}
	if err := evidence.Ahead(ctx, read, each); err != nil {
		return evidence.Reading{}, err
	}
	return r.reading(), nil
}

func (r *reader) reading() evidence.Reading {
	reading := evidence.Reading{
		Name: r.etcd.name, Revision: r.revision, Cluster: strconv.FormatUint(r.cluster, 16), Term: r.term, Prefixes: r.etcd.prefixes,
		Elsewhere: r.elsewhere, Members: r.members, Unreadable: append([]string{}, r.hidden...),
	}
	if len(r.silent) > 0 {
		reading.Notes = append(reading.Notes, "not all members of etcd said how far their logs go: "+evidence.Printable(strings.Join(r.silent, ", ")))
	}
	reading.Notes = append(reading.Notes, r.outside.notes()...)
	if len(r.segments) > 0 && r.segments[0].revision != r.revision {
		reading.From, reading.Changed = r.segments[0].revision, r.changed
		reading.Notes = append(reading.Notes, fmt.Sprintf(
			"etcd was compacted while it was read: revisions %d to %d were read; %d objects were written meanwhile and are counted as they are now, and as they were where they had been read",
			reading.From, reading.Revision, reading.Changed))
	}
	return reading
}

func (r *reader) run(ctx context.Context) error {
	for _, all := range r.etcd.ranges {
		resp, err := r.etcd.get(ctx, all.start, clientv3.WithRange(all.end), clientv3.WithCountOnly(), clientv3.WithRev(r.revision))
		if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			return err
		}
		if err == nil {
			r.total += resp.Count
			if err := r.pin(resp.Header); err != nil {
				return err
			}
		}
	}
	for _, all := range r.etcd.ranges {
		if err := r.readRange(ctx, all); err != nil {
			return err
		}
	}
	if err := r.delta(ctx); err != nil {
		return err
	}
	return r.look(ctx)
}

// pin fixes the revision of all that follows, unless it is fixed already. Answers of two clusters make no reading.
func (r *reader) pin(header *etcdserverpb.ResponseHeader) error {
	if r.known && header.GetClusterId() != r.cluster {
		return otherCluster(r.cluster, header.GetClusterId(), "one of --endpoints")
	}
	if !r.known {
		r.cluster, r.term, r.known = header.GetClusterId(), header.GetRaftTerm(), true
	}
	if r.revision == 0 {
		r.revision = header.GetRevision()
	}
	return nil
}

// readRange reads a range at the pinned revision, and at newer ones when that was compacted.
func (r *reader) readRange(ctx context.Context, all keyRange) error {
	for next := all.start; next != ""; {
		page, after, err := r.page(ctx, next, all.end, clientv3.WithRev(r.revision))
		if errors.Is(err, rpctypes.ErrCompacted) {
			r.revision = 0
			continue
		}
		if err != nil {
			return err
		}
		if last := len(r.segments) - 1; last < 0 || r.segments[last].end != all.end || r.segments[last].revision != r.revision {
			if last >= 0 && r.segments[last].end == all.end {
				r.segments[last].end = next
			}
			r.segments = append(r.segments, segment{keyRange{next, all.end}, r.revision})
		}
		if err := r.send(page); err != nil {
			return err
		}
		next = after
	}
	return nil
}

// delta looks once more at what was read at an older revision than the last.
func (r *reader) delta(ctx context.Context) error {
	for _, s := range r.segments {
		if s.revision == r.revision {
			continue
		}
		for next := s.start; next != ""; {
			page, after, err := r.page(ctx, next, s.end)
			if err != nil {
				return err
			}
			page = slices.DeleteFunc(page, func(kv *mvccpb.KeyValue) bool { return kv.GetModRevision() <= s.revision })
			r.changed += int64(len(page))
			if err := r.send(page); err != nil {
				return err
			}
			next = after
		}
	}
	return nil
}

// page reads from start on; after is where the next page begins, empty at the end.
func (r *reader) page(ctx context.Context, start, end string, opts ...clientv3.OpOption) (page []*mvccpb.KeyValue, after string, err error) {
	resp, err := r.etcd.get(ctx, start, append(opts, clientv3.WithRange(end), clientv3.WithLimit(r.limit))...)
	for status.Code(err) == codes.ResourceExhausted && r.limit > 1 && ctx.Err() == nil {
		r.limit /= 2
		resp, err = r.etcd.get(ctx, start, append(opts, clientv3.WithRange(end), clientv3.WithLimit(r.limit))...)
	}
	if err != nil {
		return nil, "", fmt.Errorf("from %s on: %w", evidence.Printable(start), err)
	}
	if err := r.pin(resp.Header); err != nil {
		return nil, "", err
	}
	if resp.More && len(resp.Kvs) > 0 {
		after = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	r.adapt(resp.Kvs)
	return resp.Kvs, after, nil
}

// adapt chooses the size of the next page by the weight of this one. It grows slowly: what comes next may be larger.
func (r *reader) adapt(page []*mvccpb.KeyValue) {
	if len(page) == 0 {
		return
	}
	bytes := int64(0)
	for _, kv := range page {
		bytes += int64(len(kv.Key) + len(kv.Value))
	}
	fits := pageBytes / max(1, bytes/int64(len(page)))
	r.limit = max(1, min(fits, 2*r.limit, largePage))
}

func (r *reader) send(page []*mvccpb.KeyValue) error {
	if len(page) == 0 {
		return nil
	}
	objects := make([]evidence.Object, 0, len(page))
	for _, kv := range page {
		path, _ := evidence.PathOf(r.etcd.prefixes, kv.Key)
		objects = append(objects, evidence.Object{Key: kv.Key, Path: path, Value: kv.Value, Revision: kv.ModRevision})
	}
	if err := r.emit(objects); err != nil {
		return err
	}
	r.done += int64(len(page))
	if r.etcd.progress != nil {
		r.etcd.progress("reading etcd", r.done, max(r.done, r.total))
	}
	return nil
}
