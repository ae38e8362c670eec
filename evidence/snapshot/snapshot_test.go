package snapshot_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/snapshot"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// write is one write to etcd; a nil value deletes. One without a key is what etcdutl snapshot restore --bump-revision leaves.
type write struct {
	key   string
	value []byte
}

// database is etcd's file after the writes, one revision each.
func database(t testing.TB, writes []write) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: 1024, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte("key"))
		for i, w := range writes {
			key := fmt.Appendf(binary.BigEndian.AppendUint64(nil, uint64(i+2)), "_%s", make([]byte, 8))
			kv := &mvccpb.KeyValue{Key: []byte(w.key), Value: w.value, ModRevision: int64(i + 2)}
			if w.value == nil {
				key, kv.ModRevision = append(key, 't'), 0
			}
			data, marshalErr := proto.Marshal(kv)
			if w.key == "" {
				data = nil
			}
			err = errors.Join(err, marshalErr, bucket.Put(key, data))
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// withHash is what etcdctl saves.
func withHash(database []byte) []byte {
	sum := sha256.Sum256(database)
	return append(bytes.Clone(database), sum[:]...)
}

func save(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(path string) (*snapshot.File, error) {
	return snapshot.Open(path, snapshot.Options{Prefixes: []string{"/registry"}})
}

// read gives the objects as "key=value@revision", with a * when they are past.
func read(t testing.TB, data []byte) (map[string]bool, evidence.Reading, error) {
	t.Helper()
	f, err := open(save(t, data))
	if err != nil {
		return nil, evidence.Reading{}, err
	}
	defer f.Close()
	got := map[string]bool{}
	reading, err := f.Read(t.Context(), evidence.Pinned, func(page []evidence.Object) error {
		for _, o := range page {
			got[fmt.Sprintf("%s=%.20s@%d", o.Path, o.Value, o.Revision)] = o.Past
		}
		return nil
	})
	return got, reading, err
}

func sample() []write {
	return []write{
		{"/registry/secrets/a/one", []byte("1")},    // 2
		{"/registry/secrets/a/two", []byte("1")},    // 3
		{"/registry/secrets/a/one", []byte("2")},    // 4
		{"compact_rev_key", []byte("9")},            // 5
		{"/registry/secrets/a/two", nil},            // 6
		{"/registry/secrets/a/three", []byte("1")},  // 7
		{"/registry/secrets/a/four", nil},           // 8: its life was compacted away
		{"/registry/secrets/a/three", nil},          // 9
		{"/registry/secrets/a/three", []byte("2")},  // 10: came back
		{"/registryx/secrets/a/three", []byte("2")}, // 11: of another prefix
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	for _, hashed := range []bool{true, false} {
		data := database(t, sample())
		if hashed {
			data = withHash(data)
		}
		got, reading, err := read(t, data)
		if err != nil {
			t.Fatal(err)
		}
		if want := (map[string]bool{
			"secrets/a/one=1@2": true, "secrets/a/one=2@4": false, "secrets/a/two=1@3": true,
			"secrets/a/three=1@7": true, "secrets/a/three=2@10": false,
		}); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("read %v, want %v", got, want)
		}
		if reading.Revision != 11 || (reading.SHA256 != "") != hashed || len(reading.Notes) == 0 {
			t.Errorf("reading = %+v", reading)
		}
	}
}

// A revision that was bumped by a restore is a mark, and no object: the reading goes up to it.
func TestBumpMark(t *testing.T) {
	t.Parallel()
	for _, mark := range []write{{}, {value: []byte("of a revision that deleted")}} {
		writes := append(sample(), mark)
		got, reading, err := read(t, database(t, writes))
		if err != nil || len(got) != 5 || reading.Revision != 12 || reading.Elsewhere != 0 {
			t.Errorf("read %v, %+v, %v", got, reading, err)
		}
		got, reading, err = read(t, withHash(database(t, append(writes, write{"/registry/secrets/a/five", []byte("5")}))))
		if err != nil || len(got) != 6 || reading.Revision != 13 {
			t.Errorf("written to since: read %v, %+v, %v", got, reading, err)
		}
	}
	f, err := open(save(t, database(t, append(sample(), write{}))))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if o, err := f.Find(t.Context(), "/registry/secrets/a/one"); err != nil || o.Revision != 4 {
		t.Errorf("Find = %+v, %v", o, err)
	}
	if _, err := f.Find(t.Context(), ""); !errors.Is(err, evidence.ErrNotFound) {
		t.Errorf("the mark was found: %v", err)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	f, err := open(save(t, withHash(database(t, sample()))))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if o, err := f.Find(t.Context(), "/registry/secrets/a/one"); err != nil || string(o.Value) != "2" || o.Revision != 4 {
		t.Errorf("Find = %+v, %v", o, err)
	}
	for _, key := range []string{"/registry/secrets/a/two", "/registry/secrets/a/on", "/registry/secrets/a/nothing"} {
		if _, err := f.Find(t.Context(), key); !errors.Is(err, evidence.ErrNotFound) {
			t.Errorf("Find(%s): %v, want ErrNotFound", key, err)
		}
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	var writes []write
	for i := range 3000 {
		writes = append(writes, write{fmt.Sprintf("/registry/secrets/a/%d", i), bytes.Repeat([]byte{'x'}, 700)})
	}
	for range 3 {
		writes = append(writes, write{"/registry/secrets/a/large", bytes.Repeat([]byte{'x'}, 1<<20)})
	}
	f, err := open(save(t, withHash(database(t, writes))))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var kept [][]evidence.Object
	if _, err := f.Read(t.Context(), evidence.Pinned, func(page []evidence.Object) error { kept = append(kept, page); return nil }); err != nil {
		t.Fatal(err)
	}
	total, past := 0, 0
	for _, page := range kept {
		if len(page) > 512 {
			t.Errorf("a page of %d objects", len(page))
		}
		for _, o := range page {
			total++
			if o.Past {
				past++
			}
			if len(bytes.Trim(o.Value, "x")) > 0 {
				t.Error("a kept object changed")
			}
		}
	}
	if total != 3003 || past != 2 {
		t.Errorf("%d objects, %d past; want 3003 and 2", total, past)
	}
}

// Whatever is cut off or changed is an error, and says so.
func TestDamaged(t *testing.T) {
	t.Parallel()
	db := database(t, sample())
	whole := withHash(db)
	changed := bytes.Clone(whole)
	changed[len(changed)/2] ^= 1
	wrongHash := bytes.Clone(whole)
	wrongHash[len(wrongHash)-1] ^= 1
	badKey := database(t, []write{{"/registry/a", []byte("x")}})
	copy(badKey[bytes.Index(badKey, []byte("_\x00\x00\x00\x00\x00\x00\x00\x00")):], "-")
	for name, data := range map[string][]byte{
		"empty": {}, "hash alone": whole[len(whole)-32:], "cut short": whole[:len(whole)-1], "cut to sectors": whole[:1024*3],
		"changed": changed, "wrong hash": wrongHash, "text": []byte("hello"),
		"a page of zeros": make([]byte, 4096), "zeros with hash": withHash(make([]byte, 4096)), "revision's form": badKey,
		"more after the hash": append(bytes.Clone(whole), 0),
	} {
		if _, _, err := read(t, data); !errors.Is(err, evidence.ErrDamaged) || hint.Of(err) == "" {
			t.Errorf("%s: %v (hint %q), want ErrDamaged and a hint", name, err, hint.Of(err))
		}
	}
}

// The hash is checked beside the reading: what is wrong with it is said first, and nothing that was read counts.
func TestWrongHash(t *testing.T) {
	t.Parallel()
	data := withHash(database(t, sample()))
	data[len(data)-1] ^= 1
	f, err := open(save(t, data))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, refusal := range []error{nil, errors.New("refused")} {
		reading, err := f.Read(t.Context(), evidence.Pinned, func([]evidence.Object) error { return refusal })
		if !errors.Is(err, evidence.ErrDamaged) || !strings.Contains(err.Error(), "integrity hash") || hint.Of(err) == "" || reading.Revision != 0 {
			t.Errorf("Read: %+v, %v", reading, err)
		}
	}
	if o, err := f.Find(t.Context(), "/registry/secrets/a/one"); !errors.Is(err, evidence.ErrDamaged) || o.Value != nil {
		t.Errorf("Find: %+v, %v", o, err)
	}
	refused := errors.New("refused")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := f.Read(ctx, evidence.Pinned, func([]evidence.Object) error { cancel(refused); return refused }); !errors.Is(err, refused) && !errors.Is(err, evidence.ErrDamaged) {
		t.Errorf("cancelled: %v", err)
	}
}

// A file that is written to in place while it is read is no evidence, whichever bytes were parsed and whichever were hashed.
func TestChangedWhileRead(t *testing.T) {
	t.Parallel()
	data, earlier := withHash(database(t, sample())), withHash(database(t, sample()[:7]))
	for title, change := range map[string]func(path string) error{
		"overwritten": func(path string) error { return os.WriteFile(path, earlier, 0o600) },
		"cut":         func(path string) error { return os.Truncate(path, 512) },
		"longer":      func(path string) error { return os.Truncate(path, int64(len(data)+512)) },
	} {
		path := save(t, data)
		long := time.Now().Add(-time.Hour) // the clock of file systems goes in steps
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
		f, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if o, err := f.Find(t.Context(), "/registry/secrets/a/one"); err != nil || string(o.Value) != "2" {
			t.Errorf("%s: before, Find: %s, %v", title, o.Value, err)
		}
		reading, err := f.Read(t.Context(), evidence.Pinned, func([]evidence.Object) error { return change(path) })
		if !errors.Is(err, evidence.ErrDamaged) || !strings.Contains(err.Error(), "while it was read") || hint.Of(err) == "" || reading.Revision != 0 {
			t.Errorf("%s: Read: %+v, %v", title, reading, err)
		}
		if _, err := f.Find(t.Context(), "/registry/secrets/a/one"); err == nil || errors.Is(err, evidence.ErrNotFound) {
			t.Errorf("%s: Find: %v", title, err)
		}
	}
}

func TestNotASnapshot(t *testing.T) {
	t.Parallel()
	if _, err := open(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := open(t.TempDir()); err == nil || hint.Of(err) == "" {
		t.Errorf("a folder: %v", err)
	}
	path := save(t, database(t, sample()))
	etcd, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	if err := syscall.Flock(int(etcd.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := open(path); err == nil || hint.Of(err) == "" || errors.Is(err, evidence.ErrDamaged) {
		t.Errorf("in use: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	path := save(t, withHash(database(t, sample())))
	ctx, cancel := context.WithCancel(t.Context())
	f, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cancel()
	if _, err := f.Read(ctx, evidence.Pinned, func([]evidence.Object) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("Read: %v", err)
	}
	if _, err := f.Find(ctx, "/registry/secrets/a/one"); !errors.Is(err, context.Canceled) {
		t.Errorf("Find: %v", err)
	}
}

// The structure is hostile although the hash is right: an answer or ErrDamaged.
func FuzzRead(f *testing.F) {
	f.Add(database(f, sample())[:8*1024], uint32(5*1024), byte(1))
	f.Add(database(f, nil)[:5*1024], uint32(1024), byte(0xff))
	f.Add(database(f, append(sample(), write{}, write{value: []byte("t")}))[:8*1024], uint32(4*1024+300), byte(1))
	f.Fuzz(func(t *testing.T, db []byte, at uint32, flip byte) {
		db = bytes.Clone(db[:len(db)/512*512])
		if int(at) < len(db) {
			db[at] ^= flip
		}
		if _, _, err := read(t, withHash(db)); err != nil && !errors.Is(err, evidence.ErrDamaged) {
			t.Error(err)
		}
	})
}

// A prefix that was forgotten shows, and older revisions do too.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	value := []byte("k8s:enc:kms:v2:x:data")
	_, reading, err := read(t, withHash(database(t, []write{
		{"/registry/secrets/a/one", value}, {"/other/secrets/a/one", value}, {"/other/secrets/a/one", value}, {"/other/secrets/a/one", nil}, {"/other/b", []byte("v")},
	})))
	if err != nil || reading.Elsewhere != 2 || len(reading.Notes) != 2 {
		t.Errorf("reading = %+v, %v", reading, err)
	}
}

// A FIFO must not keep a command waiting for a writer.
func TestFIFO(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(path); err == nil || !strings.Contains(err.Error(), "it is not a file") {
		t.Errorf("error = %v", err)
	}
}
