package live_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/live"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func name(i int) string { return fmt.Sprintf("/registry/secrets/ns/%05d", i) }

// store is an etcd of n small secrets, with neighbours that must not be read.
func store(n int) *fakeKV {
	f := &fakeKV{}
	for i := range n {
		f.put(name(i), []byte("v"))
	}
	f.put("/registry", []byte("x"))
	f.put("/registry0", []byte("x"))
	f.put("/registry2/secrets/a", []byte("x"))
	f.put("compact_rev_key", []byte("x"))
	return f
}

func read(t *testing.T, f *fakeKV, prefixes ...string) (map[string][]string, evidence.Reading) {
	t.Helper()
	if prefixes == nil {
		prefixes = []string{"/registry"}
	}
	got := map[string][]string{}
	reading, err := live.New(f, live.Config{Endpoints: []string{"fake"}, Prefixes: prefixes}).Read(t.Context(), func(page []evidence.Object) error {
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

// Compaction takes the revision away: nothing that was written meanwhile is missed, and what was read twice is said.
func TestCompaction(t *testing.T) {
	t.Parallel()
	f := store(20000)
	f.before = func(page int) {
		if page != 3 && page != 5 {
			return
		}
		f.put(name(1), fmt.Appendf(nil, "rewritten%d", page)) // read already
		f.put(name(19999), fmt.Appendf(nil, "rewritten%d", page))
		f.put(name(0)+"new", []byte("new"))
		f.delete(name(2))
		f.compact()
	}
	got, reading := read(t, f)
	if reading.From == 0 || reading.Revision <= reading.From || reading.Changed != 2 || len(reading.Notes) != 1 {
		t.Errorf("reading = %+v, want what changed", reading)
	}
	for key, want := range map[string]string{
		name(1): "v rewritten5", name(19999): "rewritten5", name(0) + "new": "new", name(2): "v", name(10000): "v",
	} {
		if values := strings.Join(got[key], " "); values != want {
			t.Errorf("%s was read as %q, want %q", key, values, want)
		}
	}
	if len(got) != 20001 {
		t.Errorf("%d objects, want all of them", len(got))
	}
}

// Pages follow the weight of their objects, so that neither end holds more than a few MiB; an answer that is too large
// is asked for in pieces.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	f := store(0)
	f.maxBytes = 8 << 20
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
	for _, size := range f.sizes {
		if size > 8<<20 {
			t.Errorf("a page of %d bytes", size)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	source := live.New(store(1000), live.Config{Prefixes: []string{"/registry"}})
	calls := 0
	if _, err := source.Read(t.Context(), func([]evidence.Object) error { calls++; return errRefused }); !errors.Is(err, errRefused) || calls != 1 {
		t.Errorf("after %d pages: %v, want the callback's error", calls, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := source.Read(ctx, func([]evidence.Object) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	f := store(10)
	f.fail = errRefused
	if _, err := live.New(f, live.Config{Prefixes: []string{"/registry"}}).Read(t.Context(), func([]evidence.Object) error { return nil }); !errors.Is(err, errRefused) {
		t.Errorf("etcd refuses: %v", err)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	source := live.New(store(3), live.Config{Prefixes: []string{"/registry"}})
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
	f.before = func(page int) { f.cluster = map[int]uint64{3: 0xdef}[page] }
	_, err := live.New(f, live.Config{Prefixes: []string{"/registry"}}).Read(t.Context(), func([]evidence.Object) error { return nil })
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
	if reading.Elsewhere != 4 || len(reading.Unreadable) != 0 || reading.Unreadable == nil || len(reading.Notes) != 1 || len(got) != 4 || reading.Term != 7 {
		t.Errorf("read %d objects, %+v", len(got), reading)
	}
	f.denied = "/registry/"
	got, reading = read(t, f)
	if reading.Elsewhere != 2 || len(got) != 4 || len(reading.Notes) != 2 || !strings.Contains(reading.Notes[1], "may not read all keys") ||
		!slices.Equal(reading.Unreadable, []string{"../registry/"}) {
		t.Errorf("a client that may not read all: read %d objects, %+v", len(got), reading)
	}
}
