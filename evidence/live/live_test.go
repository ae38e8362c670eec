package live_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func name(i int) string { return fmt.Sprintf("/registry/secrets/ns/%05d", i) }

// store is an etcd of n small secrets, with neighbours that must not be read.
func store(n int) *fakeEtcd {
	f := newFake()
	for i := range n {
		f.put(name(i), []byte("v"))
	}
	f.put("/registry", []byte("x"))
	f.put("/registry0", []byte("x"))
	f.put("/registry2/secrets/a", []byte("x"))
	f.put("compact_rev_key", []byte("x"))
	return f
}

func none([]evidence.Object) error { return nil }

func read(t *testing.T, f *fakeEtcd, prefixes ...string) (map[string][]string, evidence.Reading) {
	t.Helper()
	got := map[string][]string{}
	reading, err := f.serve(t, prefixes...).Read(t.Context(), evidence.Pinned, func(page []evidence.Object) error {
		for _, o := range page {
			if o.Past || !strings.HasSuffix(string(o.Key), "/"+string(o.Path)) {
				t.Errorf("object = %+v", o)
			}
			got[string(o.Key)] = append(got[string(o.Key)], string(o.Value))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, reading
}

func TestRead(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 255, 256, 257, 5000} {
		f := store(n)
		revision := f.revision
		f.before = func(int) { f.put(name(99999), []byte("later")) } // not of the revision that is read
		got, reading := read(t, f)
		if len(got) != n || reading.Revision != revision || reading.From != 0 || reading.Changed != 0 || reading.Cluster != "abc" {
			t.Errorf("%d objects: read %d, %+v, want revision %d", n, len(got), reading, revision)
		}
		for key, values := range got {
			if len(values) != 1 {
				t.Errorf("%s was read %d times", key, len(values))
			}
		}
	}
}

func TestPrefixes(t *testing.T) {
	t.Parallel()
	got, _ := read(t, store(3), "/registry", "/registry2", "/registry/secrets", "/registry")
	if len(got) != 4 || len(got["/registry2/secrets/a"]) != 1 || len(got[name(0)]) != 1 {
		t.Errorf("read %v", got)
	}
}

// Compaction takes the revision away: the reading is then of one state all the same, whatever is written meanwhile.
func TestCompaction(t *testing.T) {
	t.Parallel()
	f := store(5000)
	f.put("/other/secrets/a", []byte("k8s:enc:kms:v2:x:data"))
	f.put("/other/secrets/b", []byte("k8s:enc:kms:v2:x:data"))
	f.before = func(page int) {
		f.put(name(1), fmt.Appendf(nil, "rewritten%d", page)) // read already
		f.put(name(4999), fmt.Appendf(nil, "rewritten%d", page))
		f.put(name(0)+"new", []byte("new"))
		f.put("/other/secrets/c", []byte("k8s:enc:kms:v2:x:data"))
		f.delete("/other/secrets/b")
		f.delete(name(2))
		f.delete(name(4998))
		f.put(name(3), []byte("passing"))
		f.delete(name(3))
		f.compact()
	}
	got, reading, tries, err := state(t, f.serve(t))
	if err != nil || tries != 2 || reading.From == 0 || reading.Changed != 6 || reading.Elsewhere != 2 || len(reading.Notes) != 2 {
		t.Errorf("after %d tries: %+v, %v", tries, reading, err)
	}
	want := map[string]string{}
	for _, kv := range f.at(reading.Revision, "/registry/", "/registry0") {
		want[string(kv.Key)] = string(kv.Value)
	}
	if !maps.Equal(got, want) || len(want) != 4998 || reading.Revision <= reading.From {
		t.Errorf("%d objects, want the %d of revision %d", len(got), len(want), reading.Revision)
	}
}

// One object is under the old key in every revision, and moves backwards through the keys, so that pages alone never show it.
func TestCompactionMover(t *testing.T) {
	t.Parallel()
	const n = 3000
	f := store(n)
	f.put(name(n-1), []byte("OLD"))
	at := n - 1
	f.before = func(int) {
		for range 250 {
			if at > 0 {
				f.put(name(at-1), []byte("OLD"))
				f.put(name(at), []byte("v"))
				at--
			}
		}
		f.compact()
	}
	got, reading, _, err := state(t, f.serve(t))
	old := 0
	for _, value := range got {
		if value == "OLD" {
			old++
		}
	}
	if err != nil || old == 0 || old > 2 || len(got) != n || reading.From == 0 {
		t.Errorf("%d of %d objects are under the old key: %+v, %v", old, len(got), reading, err)
	}
}

// Loose needs no revision to be kept.
func TestLoose(t *testing.T) {
	t.Parallel()
	f := store(5000)
	f.before = func(page int) {
		f.put(name(4999), fmt.Appendf(nil, "rewritten%d", page))
		f.compact()
	}
	got := map[string]string{}
	reading, err := f.serve(t).Read(t.Context(), evidence.Loose, func(page []evidence.Object) error {
		for _, o := range page {
			got[string(o.Key)] = string(o.Value)
		}
		return nil
	})
	if err != nil || len(got) != 5000 || !strings.HasPrefix(got[name(4999)], "rewritten") || reading.Revision != 0 {
		t.Errorf("%d objects, %+v, %v", len(got), reading, err)
	}
}

// Pages follow the weight of their objects, so that neither end holds more than a few MiB; an answer that is too large
// is asked for in pieces.
func TestLargeValues(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	f := store(0)
	for i := range 200 {
		value := []byte("small")
		if i >= 100 {
			value = bytes.Repeat([]byte{'x'}, 1<<20)
		}
		f.put(name(i), value)
	}
	got, _ := read(t, f)
	if len(got) != 200 {
		t.Errorf("read %d objects, want 200", len(got))
	}
	taken := slices.DeleteFunc(f.sizes, func(size int) bool { return size > 16<<20 })
	if largest := slices.Max(taken); largest < 2<<20 {
		t.Errorf("the largest page that was taken has %d bytes", largest)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	source := store(1000).serve(t)
	for _, way := range []evidence.Way{evidence.Pinned, evidence.Followed, evidence.Loose} {
		calls := 0
		if _, err := source.Read(t.Context(), way, func([]evidence.Object) error { calls++; return errRefused }); !errors.Is(err, errRefused) || calls != 1 {
			t.Errorf("after %d pages: %v, want the callback's error", calls, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := source.Read(ctx, way, func([]evidence.Object) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	f := store(10)
	f.fail = errRefused
	if _, err := f.serve(t).Read(t.Context(), evidence.Pinned, none); err == nil || !strings.Contains(err.Error(), errRefused.Error()) {
		t.Errorf("etcd refuses: %v", err)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	source := store(3).serve(t)
	if o, err := source.Find(t.Context(), name(1)); err != nil || string(o.Value) != "v" || string(o.Key) != name(1) {
		t.Errorf("Find = %+v, %v", o, err)
	}
	if _, err := source.Find(t.Context(), name(7)); !errors.Is(err, evidence.ErrNotFound) {
		t.Errorf("Find of what is not there: %v", err)
	}
}

// Endpoints of two clusters give a part of each, which must not pass for a reading of one.
func TestTwoClusters(t *testing.T) {
	t.Parallel()
	f := store(1000)
	f.before = func(page int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.cluster = map[int]uint64{3: 0xdef}[page]
	}
	_, err := f.serve(t).Read(t.Context(), evidence.Pinned, none)
	if err == nil || !strings.Contains(err.Error(), "different clusters: abc, and def") || hint.Of(err) == "" {
		t.Errorf("two clusters: %v", err)
	}
}

// A prefix that was forgotten shows: what an API server encrypted and is not below the prefixes is counted apart.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	f := store(3)
	for _, key := range []string{"/a/secrets/one", "/registry/secrets/ns/mine", "/registry-/secrets/one", "/registry0/secrets/one", "\xff\xff"} {
		f.put(key, []byte("k8s:enc:kms:v2:x:data"))
	}
	f.term = 7
	got, reading := read(t, f)
	if reading.Elsewhere != 4 || len(reading.Notes) != 1 || len(got) != 4 || reading.Term != 7 || len(reading.Unreadable) != 0 || reading.Unreadable == nil {
		t.Errorf("read %d objects, %+v", len(got), reading)
	}
	f.denied = "/registry/"
	got, reading = read(t, f)
	if reading.Elsewhere != 2 || len(got) != 4 || len(reading.Notes) != 2 || !strings.Contains(reading.Notes[1], "may not read all keys") ||
		!slices.Equal(reading.Unreadable, []string{"../registry/"}) {
		t.Errorf("a client that may not read all: read %d objects, %+v", len(got), reading)
	}
	f.denied = "/registry0"
	if _, err := f.serve(t).Read(t.Context(), evidence.Pinned, none); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a client that may read nothing: %v", err)
	}
}
