package live

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/hsm-kms/hsm-kms/evidence"
)

const (
	// maxHeld bounds, in bytes, what is held of the objects that are written while the pages are read.
	maxHeld = 64 << 20
	// heldCost is what a held object takes beside its key and value.
	heldCost = 200
	// askAgain is the pause between requests for progress.
	askAgain = 100 * time.Millisecond
)

// change is the newest write of a key.
type change struct {
	revision int64
	value    []byte
	deleted  bool
}

// watcher is one range that is watched.
type watcher struct {
	keyRange
	seen     int64 // revision of the last event
	complete int64 // all events up to here have come
}

// follower takes what is written while pages are read: see the package's comment.
type follower struct {
	etcd    *Etcd
	stream  pb.Watch_WatchClient
	cancel  context.CancelFunc
	header  *pb.ResponseHeader // of the answer to the last watch
	from    int64              // everything written after it is told
	all     bool               // one watcher over all keys: every revision must show
	prompts bool               // etcd's answer to a request for progress can be relied on
	ended   chan struct{}      // closed when nothing is received any more
	moved   chan struct{}      // of size 1: something was received

	mu       sync.Mutex // guards the fields below
	watchers map[int64]*watcher
	changes  map[string]change
	held     int
	highest  int64 // revision of all events
	until    int64 // later ones are left out; 0: none
	err      error // why it ended
}

// follow begins to watch the ranges, and returns when etcd has said from where on it tells of writes.
func follow(ctx context.Context, e *Etcd, ranges []keyRange, all bool) (*follower, error) {
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{
		etcd: e, cancel: cancel, all: all, ended: make(chan struct{}), moved: make(chan struct{}, 1),
		watchers: map[int64]*watcher{}, changes: map[string]change{},
	}
	late := time.AfterFunc(e.patience, cancel)
	err := f.begin(ctx, ranges)
	if !late.Stop() && ctx.Err() != nil {
		err = f.lost("etcd did not begin to tell what is written within %s", e.patience)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	go f.receive(asked)
	return f, nil
}

// begin opens the stream and begins to watch the ranges. f.mu is held, or nobody else has f yet.
func (f *follower) begin(ctx context.Context, ranges []keyRange) error {
	stream, err := f.etcd.watch(ctx)
	if err != nil {
		return f.lost("beginning to watch: %w", err)
	}
	f.stream = stream
	for _, r := range ranges {
		err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte(r.start), RangeEnd: []byte(r.wireEnd()), ProgressNotify: true, Fragment: true,
		}}})
		if err != nil {
			return f.lost("beginning to watch: %w", err)
		}
		for began := len(f.watchers); len(f.watchers) == began; {
			resp, err := stream.Recv()
			if err != nil {
				return f.lost("beginning to watch: %w", err)
			}
			if err := f.take(resp, r); err != nil {
				return err
			}
		}
	}
	if !f.all {
		f.prompts = f.etcd.prompts(ctx, f.header.GetMemberId())
	}
	return nil
}

// prompts reports whether the member's answers to requests for progress come in order with the events.
func (e *Etcd) prompts(ctx context.Context, member uint64) bool {
	for _, status := range e.statuses(ctx) {
		if status == nil || status.Header.GetMemberId() != member {
			continue
		}
		is, err := version.ParseSemantic(status.Version)
		if err != nil {
			return false
		}
		floor := "3.5.13"
		if is.Major() == 3 && is.Minor() == 4 {
			floor = "3.4.31"
		}
		return is.AtLeast(version.MustParseSemantic(floor))
	}
	return false
}

// lost is an error that makes the reading not whole.
func (f *follower) lost(format string, args ...any) error {
	return fmt.Errorf("%w: %w", evidence.ErrNotWhole, fmt.Errorf(format, args...))
}

// receive takes answers until the stream ends. ctx is that of the reading.
func (f *follower) receive(ctx context.Context) {
	defer close(f.ended)
	for {
		resp, err := f.stream.Recv()
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if err != nil {
			err = f.lost("etcd ended the watch: %w", err)
		} else {
			err = f.take(resp, keyRange{})
		}
		if err != nil {
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
		}
		select {
		case f.moved <- struct{}{}:
		default:
		}
		if err != nil {
			f.cancel()
			return
		}
	}
}

// take takes one answer; begun is the range of the watch that is being created, if one is.
func (f *follower) take(resp *pb.WatchResponse, begun keyRange) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.watchers[resp.WatchId]
	switch {
	case resp.Canceled && resp.CompactRevision != 0:
		return f.lost("etcd was compacted at %d before it reported what was written: %w", resp.CompactRevision, rpctypes.ErrCompacted)
	case resp.Canceled:
		return f.lost("etcd refused or ended the watch: %s", evidence.Printable(resp.CancelReason))
	case resp.Created && (begun == keyRange{} || w != nil || resp.Header.GetRevision() <= 0):
		return f.etcd.broken("it began a watch that was not asked for")
	case resp.Created:
		f.watchers[resp.WatchId] = &watcher{keyRange: begun, complete: resp.Header.GetRevision()}
		f.header = resp.Header
		if f.from == 0 || resp.Header.GetRevision() < f.from {
			f.from = resp.Header.GetRevision()
		}
		f.highest = max(f.highest, resp.Header.GetRevision())
		return nil
	case len(resp.Events) == 0:
		f.progress(resp, w)
		return nil
	case w == nil:
		return f.etcd.broken("it tells of a watch that was not asked for")
	}
	for _, event := range resp.Events {
		if err := f.event(w, event); err != nil {
			return err
		}
	}
	if !resp.Fragment {
		w.complete = max(w.complete, w.seen)
	}
	return nil
}

// progress takes etcd's word that it has told all up to a revision. Where every revision shows nobody's word is needed.
// f.mu is held.
func (f *follower) progress(resp *pb.WatchResponse, w *watcher) {
	revision := resp.Header.GetRevision()
	switch {
	case f.all:
	case w != nil:
		w.complete = max(w.complete, revision)
	case resp.WatchId == clientv3.InvalidWatchID && f.prompts:
		for _, w := range f.watchers {
			w.complete = max(w.complete, revision)
		}
	}
}

// event takes up what etcd tells. f.mu is held.
func (f *follower) event(w *watcher, event *mvccpb.Event) error {
	kv := event.GetKv()
	key, revision := string(kv.GetKey()), kv.GetModRevision()
	switch {
	case !w.contains(key):
		return f.etcd.broken("it tells of %s, which is not watched", evidence.Printable(key))
	case revision <= 0 || revision < w.seen:
		return f.etcd.broken("it tells of revision %d after %d", revision, w.seen)
	case f.all && revision > max(w.complete, w.seen)+1:
		return f.lost("etcd told of revision %d after %d, and not of what lies between", revision, max(w.complete, w.seen))
	}
	w.seen = revision
	if f.until > 0 && revision > f.until {
		return nil
	}
	f.highest = max(f.highest, revision)
	if before, ok := f.changes[key]; ok {
		if before.revision > revision {
			return nil
		}
		f.held -= len(key) + len(before.value) + heldCost
	}
	is := change{revision: revision, value: kv.GetValue(), deleted: event.GetType() == mvccpb.Event_DELETE}
	f.changes[key] = is
	if f.held += len(key) + len(is.value) + heldCost; f.held > maxHeld {
		return f.lost("more than %d MiB of objects were written while etcd was read", maxHeld>>20)
	}
	return nil
}

// failed is why following ended; nil: it goes on.
func (f *follower) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// settle waits until everything up to the revision has come, and returns what was written, and up to which revision. Then
// it ends.
func (f *follower) settle(ctx context.Context, revision int64) (map[string]change, int64, error) {
	f.mu.Lock()
	f.until = max(revision, f.highest)
	until := f.until
	f.mu.Unlock()
	late := time.NewTimer(f.etcd.patience)
	defer late.Stop()
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		switch complete, err := f.state(until); {
		case err != nil:
			return nil, 0, err
		case complete:
			f.stop()
			return f.changes, until, nil
		}
		select {
		case <-f.moved:
		case <-again.C:
			if f.prompts {
				// A failure shows in what is received.
				_ = f.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
			}
		case <-late.C:
			return nil, 0, f.lost("%w", f.silent(until))
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
}

func (f *follower) state(until int64) (complete bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	complete = true
	for _, w := range f.watchers {
		complete = complete && w.complete >= until
	}
	if complete {
		return true, nil
	}
	return false, f.err
}

func (f *follower) silent(until int64) error {
	if !f.all && !f.prompts {
		return errors.New("this client may not watch all keys, and this release of etcd does not report its progress: use one from 3.5.13 on, or a client that may read all keys")
	}
	return fmt.Errorf("etcd did not tell within %s what was written up to revision %d", f.etcd.patience, until)
}

// stop ends it; nothing is received afterwards. It can be called again.
func (f *follower) stop() {
	f.cancel()
	<-f.ended
}
