package live_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// peak runs f and returns the most that was in use of the heap meanwhile, beyond what was in use before, in bytes.
func peak(f func()) uint64 {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most atomic.Uint64
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&now)
				most.Store(max(most.Load(), now.HeapAlloc))
			}
		}
	}()
	f()
	close(ended)
	<-watched
	return most.Load() - min(most.Load(), before.HeapAlloc)
}

// hostilePages are answers that no etcd gives: of the page, and of what is asked for.
func hostilePages() map[string]struct {
	page func(*pb.RangeRequest, *pb.RangeResponse)
	said string
} {
	large := bytes.Repeat([]byte{'x'}, 17<<20)
	one := func(key string, value []byte) []*mvccpb.KeyValue {
		return []*mvccpb.KeyValue{{Key: []byte(key), Value: value, ModRevision: 1}}
	}
	type page = func(*pb.RangeRequest, *pb.RangeResponse)
	onPages := func(f page) page {
		return func(req *pb.RangeRequest, resp *pb.RangeResponse) {
			if !req.CountOnly && len(resp.Kvs) > 0 && strings.HasPrefix(string(req.Key), "/registry/") {
				f(req, resp)
			}
		}
	}
	return map[string]struct {
		page page
		said string
	}{
		"a page that repeats itself": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) {
			resp.Kvs, resp.More, resp.Count = one("/registry/a", nil), true, 1000
		}), "where one from"},
		"a page of 17 MiB":       {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs, resp.Count = one(name(1), large), 1 }), "received message larger than max"},
		"a count without an end": {func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Count = 1 << 60 }, "more than 10000000 objects"},
		"no end at one revision": {onPages(func(req *pb.RangeRequest, resp *pb.RangeResponse) {
			resp.Kvs, resp.More, resp.Count = one(string(req.Key), nil), true, 1<<60
		}), "and gives more"},
		"more, and nothing": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs, resp.More = nil, true }), "and gives nothing"},
		"out of order": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) {
			if len(resp.Kvs) > 1 {
				resp.Kvs[0], resp.Kvs[1] = resp.Kvs[1], resp.Kvs[0]
			}
		}), "where one from"},
		"before the range": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs = append(one("/a", nil), resp.Kvs[1:]...) }), "gives the key /a"},
		"beyond the range": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) {
			resp.Kvs = append(resp.Kvs[:len(resp.Kvs)-1:len(resp.Kvs)-1], one("/z", nil)...)
		}), "gives the key /z"},
		"more objects than asked for": {onPages(func(req *pb.RangeRequest, resp *pb.RangeResponse) {
			for i := range req.Limit + 1 {
				resp.Kvs = append(resp.Kvs, one(name(int(100+i)), nil)...)
			}
		}), "and was asked for"},
		"fewer objects than counted": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs, resp.Count = resp.Kvs[1:], resp.Count-1 }), "and gave "},
		"cut short":                  {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs = resp.Kvs[:len(resp.Kvs)/2] }), "says of more that it is false"},
		"a negative count":           {func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Count = -1 }, "counts -1 keys"},
		"of the future":              {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs = ofRevision(resp.Kvs, 1<<40) }), "as of revision"},
		"of no revision":             {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Kvs = ofRevision(resp.Kvs, 0) }), "as of revision"},
		"going back":                 {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Header.Revision-- }), "and was at"},
		"no header":                  {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) { resp.Header = nil }), "no header"},
		"too many empty objects": {onPages(func(_ *pb.RangeRequest, resp *pb.RangeResponse) {
			resp.Kvs = make([]*mvccpb.KeyValue, 100_001)
			for i := range resp.Kvs {
				resp.Kvs[i] = &mvccpb.KeyValue{}
			}
		}), "parts"},
	}
}

// A wrong answer ends the reading, soon and in little memory, in each way of reading. It is no evidence.
func TestHostilePages(t *testing.T) { //nolint:paralleltest // the heap is measured
	for title, test := range hostilePages() {
		for _, way := range []evidence.Way{evidence.Pinned, evidence.Followed, evidence.Loose} {
			if way != evidence.Pinned && (test.said == "and gives more" || test.said == "and gave ") {
				continue // without a revision there is nothing to compare counts with
			}
			if testing.Short() && way != evidence.Pinned {
				continue // make test reads in all three ways
			}
			for _, nth := range []int{0, 2} {
				if nth > 0 && (way == evidence.Loose || testing.Short() && strings.HasPrefix(test.said, "received") || test.said == "parts") {
					continue // read in one piece; or much work, and the same whichever page it is
				}
				t.Run(fmt.Sprint(title, way, nth), func(t *testing.T) {
					f := store(10)
					f.page = test.page
					e := f.serve(t)
					if nth > 0 {
						f = inParts()
						f.page = onNthPage(nth, test.page)
						e = f.serve(t)
						e.SetFarSight(20)
					}
					_, err := e.Read(t.Context(), way, none)
					if err == nil || !strings.Contains(err.Error(), test.said) || errors.Is(err, evidence.ErrNotWhole) || hint.Of(err) == "" && test.said != "more than 10000000 objects" {
						t.Errorf("error = %v (hint %q), want %q", err, hint.Of(err), test.said)
					}
				})
			}
		}
	}
}

// ofRevision gives copies: the fake has the objects for other answers too, which may be on their way.
func ofRevision(kvs []*mvccpb.KeyValue, revision int64) (copies []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		copies = append(copies, &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value, ModRevision: revision})
	}
	return copies
}

const objectsInParts = 300

// inParts is an etcd of objects that are read in several parts, each in pages of several objects.
func inParts() *fakeEtcd {
	f := store(0)
	for i := range objectsInParts {
		f.put(fmt.Sprintf("/registry/secrets/%d/%d", i/20, i), []byte("v"))
	}
	return f
}

// onNthPage has answers be wrong from that to the nth page of several objects on.
func onNthPage(n int, wrong func(*pb.RangeRequest, *pb.RangeResponse)) func(*pb.RangeRequest, *pb.RangeResponse) {
	pages := 0
	return func(req *pb.RangeRequest, resp *pb.RangeResponse) {
		if len(resp.Kvs) > 5 {
			pages++
		}
		if pages >= n || req.CountOnly {
			wrong(req, resp)
		}
	}
}

// A store that gives whatever is asked for without an end, in large pages and keys that go on forever, is left in bounded
// memory: what is held does not grow with what was read.
func TestMemory(t *testing.T) { //nolint:paralleltest // the heap is measured
	if testing.Short() {
		t.Skip("make test runs it")
	}
	for _, way := range []evidence.Way{evidence.Pinned, evidence.Followed, evidence.Loose} {
		f := store(1)
		var given atomic.Int64
		value := make([]byte, 15<<20)
		f.page = func(req *pb.RangeRequest, resp *pb.RangeResponse) {
			if !strings.HasPrefix(string(req.Key), "/registry/") {
				return
			}
			resp.Count = 9_000_000
			if !req.CountOnly {
				given.Add(1)
				resp.Kvs, resp.More = []*mvccpb.KeyValue{{Key: append(bytes.Clone(req.Key), "00"...), Value: value, ModRevision: 1}}, true
			}
		}
		e := f.serve(t)
		ctx, cancel := context.WithCancel(t.Context())
		most := peak(func() {
			_, _ = e.Read(ctx, way, func([]evidence.Object) error {
				if given.Load() > 25 {
					cancel()
				}
				return nil
			})
		})
		cancel()
		if given.Load() < 25 || most > 200<<20 {
			t.Errorf("%d: %d pages of 15 MiB: up to %d MiB were in use", way, given.Load(), most>>20)
		}
	}
}

// watched reads while each of n pages is preceded by a write, through a watch that misbehaves.
func watched(t *testing.T, watch func(*pb.WatchResponse) []*pb.WatchResponse, flood int) error {
	t.Helper()
	f := store(10)
	f.watch = watch
	f.before = func(page int) {
		for i := range max(1, flood) {
			value := []byte("v2")
			if flood > 0 {
				value = make([]byte, 1<<20)
			}
			f.put(name(100*page+i), value)
		}
	}
	_, err := f.serve(t).Read(t.Context(), evidence.Followed, none)
	return err
}

// A watch that does not tell everything in order makes no reading.
func TestHostileWatch(t *testing.T) {
	t.Parallel()
	dropped := false
	onEvents := func(f func(*pb.WatchResponse) []*pb.WatchResponse) func(*pb.WatchResponse) []*pb.WatchResponse {
		return func(resp *pb.WatchResponse) []*pb.WatchResponse {
			if len(resp.Events) == 0 {
				return []*pb.WatchResponse{resp}
			}
			return f(resp)
		}
	}
	with := func(change func(*mvccpb.Event)) func(*pb.WatchResponse) []*pb.WatchResponse {
		return onEvents(func(resp *pb.WatchResponse) []*pb.WatchResponse {
			kv := resp.Events[0].Kv
			event := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value, ModRevision: kv.ModRevision}}
			change(event)
			return []*pb.WatchResponse{{Header: resp.Header, Events: []*mvccpb.Event{event}}}
		})
	}
	for title, test := range map[string]struct {
		watch    func(*pb.WatchResponse) []*pb.WatchResponse
		flood    int
		said     string
		notWhole bool
	}{
		"an event is missing": {watch: onEvents(func(resp *pb.WatchResponse) []*pb.WatchResponse {
			if !dropped {
				dropped = true
				return nil
			}
			return []*pb.WatchResponse{resp}
		}), said: "not of what lies between", notWhole: true},
		"it ends": {watch: onEvents(func(*pb.WatchResponse) []*pb.WatchResponse { return []*pb.WatchResponse{nil} }), said: "ended the watch", notWhole: true},
		"compacted": {watch: onEvents(func(resp *pb.WatchResponse) []*pb.WatchResponse {
			return []*pb.WatchResponse{{Header: resp.Header, Canceled: true, CompactRevision: 9}}
		}), said: "compacted at 9", notWhole: true},
		"cancelled": {watch: onEvents(func(resp *pb.WatchResponse) []*pb.WatchResponse {
			return []*pb.WatchResponse{{Header: resp.Header, Canceled: true, CancelReason: "no\x1b[2J"}}
		}), said: `no\x1b[2J`, notWhole: true},
		"refused": {watch: func(resp *pb.WatchResponse) []*pb.WatchResponse {
			return []*pb.WatchResponse{{Header: resp.Header, Created: true, Canceled: true, WatchId: -1, CancelReason: "no"}}
		}, said: "refused", notWhole: true},
		"a flood":       {flood: 70, said: "more than 64 MiB", notWhole: true},
		"another key":   {watch: with(func(e *mvccpb.Event) { e.Kv.Key = nil }), said: "which is not watched"},
		"another watch": {watch: onEvents(func(resp *pb.WatchResponse) []*pb.WatchResponse { resp.WatchId = 7; return []*pb.WatchResponse{resp} }), said: "not asked for"},
		"another, unasked": {watch: onEvents(func(resp *pb.WatchResponse) []*pb.WatchResponse {
			resp.Created = true
			return []*pb.WatchResponse{resp}
		}), said: "not asked for"},
		"no revision":         {watch: with(func(e *mvccpb.Event) { e.Kv.ModRevision = 0 }), said: "revision 0"},
		"an event of nothing": {watch: with(func(e *mvccpb.Event) { e.Kv = nil }), said: "not watched"},
		"a page older than the watch": {watch: func(resp *pb.WatchResponse) []*pb.WatchResponse {
			if resp.Created {
				resp.Header.Revision += 100
			}
			return []*pb.WatchResponse{resp}
		}, said: "and was at"},
	} {
		if testing.Short() && test.flood > 0 {
			continue // make test writes so much
		}
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			err := watched(t, test.watch, test.flood)
			if err == nil || !strings.Contains(err.Error(), test.said) || errors.Is(err, evidence.ErrNotWhole) != test.notWhole {
				t.Errorf("error = %v, want %q", err, test.said)
			}
		})
	}
}

// What is told before the first page is asked for is taken as all else is.
func TestEarlyEvents(t *testing.T) {
	t.Parallel()
	for range 20 { // the race detector sees some of them
		f := store(10)
		f.watch = func(resp *pb.WatchResponse) []*pb.WatchResponse {
			if !resp.Created {
				return []*pb.WatchResponse{resp}
			}
			f.put(name(1), []byte("early"))
			event := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(name(1)), Value: []byte("early"), ModRevision: resp.Header.Revision + 1}}
			return []*pb.WatchResponse{resp, {Header: f.header(event.Kv.ModRevision), WatchId: resp.WatchId, Events: []*mvccpb.Event{event}}}
		}
		reading, err := f.serve(t).Read(t.Context(), evidence.Followed, none)
		if err != nil || reading.Changed != 1 || reading.Revision != reading.From+1 {
			t.Errorf("%+v, %v", reading, err)
		}
	}
}

// A server that never answers, or never sends what was written, is waited for only so long.
func TestSilence(t *testing.T) {
	t.Parallel()
	const short = 2 * time.Second
	onEvents := func(resp *pb.WatchResponse) []*pb.WatchResponse {
		if len(resp.Events) > 0 {
			return nil
		}
		return []*pb.WatchResponse{resp}
	}
	var waits sync.WaitGroup // all at once: they do nothing but wait
	defer waits.Wait()
	for title, test := range map[string]struct {
		prepare func(*fakeEtcd)
		said    string
	}{
		"no events": {func(f *fakeEtcd) { f.watch = onEvents }, "did not tell within 2s"},
		"progress, and no events": {func(f *fakeEtcd) {
			f.watch = func(resp *pb.WatchResponse) []*pb.WatchResponse {
				if len(resp.Events) > 0 {
					resp.Header.Revision += 1000
					return []*pb.WatchResponse{{Header: resp.Header, WatchId: -1}, {Header: resp.Header}}
				}
				return []*pb.WatchResponse{resp}
			}
		}, "did not tell within 2s"},
		"no beginning":  {func(f *fakeEtcd) { f.watch = func(*pb.WatchResponse) []*pb.WatchResponse { return nil } }, "did not begin to tell"},
		"an old etcd":   {func(f *fakeEtcd) { f.version, f.denied = "3.5.12", "/registry/" }, "use one from 3.5.13 on"},
		"an older etcd": {func(f *fakeEtcd) { f.version, f.denied = "3.4.30", "/registry/" }, "use one from 3.5.13 on"},
		"no etcd":       {func(f *fakeEtcd) { f.version, f.denied = "", "/registry/" }, "use one from 3.5.13 on"},
		"parts, and no events": {func(f *fakeEtcd) {
			f.watch, f.denied = func(resp *pb.WatchResponse) []*pb.WatchResponse {
				if resp.Created {
					return []*pb.WatchResponse{resp}
				}
				return nil
			}, "/registry/"
		}, "did not tell within 2s"},
	} {
		f := store(10)
		f.before = func(int) { f.put("/elsewhere", []byte("x")); f.put("/registry0", []byte("x")) }
		test.prepare(f)
		e := f.serve(t)
		e.SetPatience(short)
		waits.Go(func() {
			_, err := e.Read(t.Context(), evidence.Followed, none)
			if !errors.Is(err, evidence.ErrNotWhole) || !strings.Contains(err.Error(), test.said) {
				t.Errorf("%s: error = %v, want %q", title, err, test.said)
			}
		})
	}
	f := store(10)
	release := make(chan struct{})
	f.before = func(int) { <-release }
	e := f.serve(t)
	t.Cleanup(func() { close(release) })
	e.SetPatience(short)
	if _, err := e.Read(t.Context(), evidence.Pinned, none); err == nil || !strings.Contains(err.Error(), "did not answer within 2s") {
		t.Errorf("a page that never comes: %v", err)
	}
}

// A client that may watch parts relies on etcd's word, of a release that can be relied on.
func TestParts(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"3.4.31", "3.5.13", "3.6.0", "3.7.3"} {
		f := store(10)
		f.version, f.denied = version, "/registry/"
		f.before = func(page int) { f.put("/elsewhere", []byte("x")); f.put(name(page), []byte("new")); f.compact() }
		got, reading, tries, err := state(t, f.serve(t))
		rewritten := 0
		for _, kv := range f.at(reading.Revision, "/registry/", "/registry0") {
			if got[string(kv.Key)] != string(kv.Value) {
				t.Errorf("%s: %s is %q, want %q", version, kv.Key, got[string(kv.Key)], kv.Value)
			}
			if string(kv.Value) == "new" {
				rewritten++
			}
		}
		if err != nil || tries != 2 || len(got) != 10 || rewritten == 0 || reading.From == 0 {
			t.Errorf("%s: %d objects, %+v, %v", version, len(got), reading, err)
		}
	}
}

// A reading that is not whole is tried three more times, and is none then.
func TestTries(t *testing.T) {
	t.Parallel()
	f := store(1000)
	f.before = func(page int) { f.put(name(page), []byte("new")); f.compact() }
	f.watch = func(resp *pb.WatchResponse) []*pb.WatchResponse {
		if len(resp.Events) > 0 {
			return []*pb.WatchResponse{{Header: resp.Header, Canceled: true, CompactRevision: 9}}
		}
		return []*pb.WatchResponse{resp}
	}
	_, _, tries, err := state(t, f.serve(t))
	if !errors.Is(err, evidence.ErrNotWhole) || tries != 4 || hint.Of(err) == "" || !strings.Contains(err.Error(), "after 3 tries") {
		t.Errorf("after %d tries: %v", tries, err)
	}
}

// Writes after the last page, which are sent before the awaited ones, are of a later state.
func TestLaterWrites(t *testing.T) {
	t.Parallel()
	f := store(10)
	f.denied = "/registry/" // so that the reader asks how far it was told, once it knows what it waits for
	f.before = func(page int) { f.put(name(page), []byte("meanwhile")) }
	revision := f.revision + 2 // a write ahead of each of two pages
	var held []*mvccpb.Event
	asked := false
	f.watch = func(resp *pb.WatchResponse) []*pb.WatchResponse {
		if held = append(held, resp.Events...); len(resp.Events) > 0 {
			return nil
		}
		if resp.WatchId != -1 || asked {
			return []*pb.WatchResponse{resp}
		}
		asked = true
		f.put(name(7), []byte("later"))
		f.mu.Lock()
		defer f.mu.Unlock()
		return []*pb.WatchResponse{{Header: f.header(f.revision), Events: append(held, &mvccpb.Event{Kv: f.history[len(f.history)-1]})}, resp}
	}
	got := map[string]string{}
	reading, err := f.serve(t).Read(t.Context(), evidence.Followed, func(page []evidence.Object) error {
		for _, o := range page {
			got[string(o.Key)] = string(o.Value)
		}
		return nil
	})
	if err != nil || reading.Revision != revision || reading.Changed != 2 || got[name(7)] != "v" || got[name(1)] != "meanwhile" {
		t.Errorf("%+v, %v: %v", reading, err, got)
	}
}
