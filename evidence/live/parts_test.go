package live_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
)

// keysOf are sets of keys that are hard to divide.
func keysOf(random *rand.Rand) map[string][]string {
	several := func(n int, key func(i int) string) (keys []string) {
		for i := range n {
			keys = append(keys, "/registry/"+key(i))
		}
		return keys
	}
	strange := func(n int) string {
		const bytes = "\x00\x01/09az\x7f\xfe\xff"
		b := make([]byte, n)
		for i := range b {
			b[i] = bytes[random.IntN(len(bytes))]
		}
		return string(b)
	}
	many := 700
	if testing.Short() {
		many = 150
	}
	long := strings.Repeat("namespace-", 20)
	return map[string][]string{
		"none":                  nil,
		"one":                   several(1, func(int) string { return "a" }),
		"two":                   several(2, func(i int) string { return string(rune('a' + i)) }),
		"numbers":               several(many, func(i int) string { return fmt.Sprint(i) }),
		"numbers of one length": several(many, func(i int) string { return fmt.Sprintf("%07d", i) }),
		"namespaces":            several(many, func(i int) string { return fmt.Sprintf("secrets/ns-%d/s-%d", i%13, i) }),
		"a long beginning":      several(many, func(i int) string { return fmt.Sprint(long, i) }),
		"one within another":    several(many/2, func(i int) string { return strings.Repeat("a", i+1) }),
		"the highest bytes":     several(many/2, func(i int) string { return strings.Repeat("\xff", i+1) }),
		"zero bytes":            several(many/2, func(i int) string { return "a" + strings.Repeat("\x00", i) }),
		"strange bytes":         several(many, func(int) string { return strange(1 + random.IntN(5)) }),
		"too long to cut at":    several(50, func(i int) string { return strings.Repeat("a", 1100) + fmt.Sprint(i) }),
	}
}

// atMost makes pages small, so that a part has several.
func atMost(n int) func(*pb.RangeRequest, *pb.RangeResponse) {
	return func(_ *pb.RangeRequest, resp *pb.RangeResponse) {
		if len(resp.Kvs) > n {
			resp.Kvs, resp.More = resp.Kvs[:n], true
		}
	}
}

// Whatever the keys are, and whatever is written meanwhile: each is read, and once.
func TestParted(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for title, keys := range keysOf(rand.New(rand.NewPCG(seed, 1))) {
		for _, compacted := range []bool{false, true} {
			random := rand.New(rand.NewPCG(seed, 2)) // of this store: a page that nobody waits for any more may still use it
			f := store(0)
			for _, key := range keys {
				f.put(key, []byte("v"))
			}
			began := f.revision
			if random.IntN(2) == 0 {
				f.denied = "/registry/" // several ranges are watched then
			}
			f.page = atMost(7)
			f.before = func(page int) {
				if len(keys) == 0 {
					return
				}
				changed := keys[random.IntN(len(keys))]
				f.put(keys[random.IntN(len(keys))], []byte("rewritten"))
				f.put(changed+"new", []byte("new"))
				f.delete(changed)
				if compacted && page == 3 {
					f.compact()
				}
			}
			e := f.serve(t)
			e.SetFarSight(20)
			got, reading, _, err := state(t, e)
			want := map[string]string{}
			for _, kv := range f.at(reading.Revision, "/registry/", "/registry0") {
				want[string(kv.Key)] = string(kv.Value)
			}
			if err != nil || !maps.Equal(got, want) || reading.Revision < began {
				t.Errorf("%s, compacted %t, denied below %q: read %d objects, want %d: %+v, %v", title, compacted, f.denied, len(got), len(want), reading, err)
			}
		}
	}
}

// A store that is read in parts really is, and what does not count as an etcd does is not: its ranges may mean something else.
func TestPartedWhere(t *testing.T) {
	t.Parallel()
	for title, test := range map[string]struct {
		way     evidence.Way
		sight   int64
		prepare func(*fakeEtcd)
		parts   bool
	}{
		"at one revision":   {evidence.Pinned, 20, func(*fakeEtcd) {}, true},
		"followed":          {evidence.Followed, 20, func(*fakeEtcd) {}, true},
		"loosely":           {evidence.Loose, 20, func(*fakeEtcd) {}, false},
		"few objects":       {evidence.Pinned, objectsInParts, func(*fakeEtcd) {}, false},
		"a store like kine": {evidence.Pinned, 20, func(f *fakeEtcd) { f.kine = true }, false},
	} {
		f := inParts()
		ends := map[string]bool{}
		f.page = func(req *pb.RangeRequest, _ *pb.RangeResponse) {
			if strings.HasPrefix(string(req.Key), "/registry/") {
				ends[string(req.RangeEnd)] = true
			}
		}
		test.prepare(f)
		e := f.serve(t)
		e.SetFarSight(test.sight)
		read := 0
		_, err := e.Read(t.Context(), test.way, func(page []evidence.Object) error { read += len(page); return nil })
		if err != nil || read != objectsInParts || len(ends) > 1 != test.parts || !ends["/registry0"] {
			t.Errorf("%s: %d objects, ranges to %v, %v", title, read, ends, err)
		}
	}
}

// The first error ends the reading of all parts, and is the one that is told.
func TestPartedErrors(t *testing.T) {
	t.Parallel()
	for _, way := range []evidence.Way{evidence.Pinned, evidence.Followed} {
		for _, failing := range []int{1, 3, 8, 20} {
			f := inParts()
			f.page = atMost(7)
			f.before = func(page int) {
				if page == failing {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.fail = errRefused
				}
			}
			e := f.serve(t)
			e.SetFarSight(20)
			calls := 0
			_, err := e.Read(t.Context(), way, func([]evidence.Object) error { calls++; return nil })
			if err == nil || !strings.Contains(err.Error(), errRefused.Error()) || calls > failing {
				t.Errorf("page %d fails: %v after %d pages", failing, err, calls)
			}
		}
		e := inParts().serve(t)
		e.SetFarSight(20)
		calls := 0
		_, err := e.Read(t.Context(), way, func([]evidence.Object) error {
			if calls++; calls == 2 {
				return errRefused
			}
			return nil
		})
		if !errors.Is(err, errRefused) || calls != 2 {
			t.Errorf("after %d pages: %v, want the callback's error", calls, err)
		}
	}
}

// The rest after a page is cut into ranges that have no gap and no overlap, and are not empty.
func FuzzCuts(f *testing.F) {
	f.Add("/registry0", "/registry/a/1", "/registry/a/2")
	f.Add("", "/registry/a/1", "/registry/a/1")
	f.Add("\xff\xff\xff", "\xff\xff", "\xff\xff\x01")
	f.Add("", "\xff", "\xff\xff")
	f.Add("a\x00\x00\x00", "a", "a\x00")
	f.Fuzz(func(t *testing.T, end, first, last string) {
		next := last + "\x00"
		if first > last || end != "" && next >= end {
			return // no page, or nothing follows
		}
		parts := live.Cuts(end, first, last)
		for i, part := range parts {
			isLast := i == len(parts)-1
			if part[0] != next || isLast != (part[1] == end) || part[1] != "" && part[0] >= part[1] {
				t.Fatalf("%q after %q: %q", end, last, parts)
			}
			next = part[1]
		}
	})
}
