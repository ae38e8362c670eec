package boltfile_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/hsm-kms/hsm-kms/evidence/boltfile"
)

// database makes one with bbolt: a bucket "key" of n items, a large value among them, and others around it.
func database(t testing.TB, n, pageSize int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: pageSize})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"alarm", "key", "meta"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		if err := tx.Bucket([]byte("meta")).Put([]byte("term"), []byte("12")); err != nil {
			return err
		}
		for i := range n {
			value := make([]byte, random.IntN(max(1, min(n, 1500))))
			if i == n/2 && n > 100 {
				value = bytes.Repeat([]byte("large"), 60000)
			}
			if err := tx.Bucket([]byte("key")).Put(fmt.Appendf(nil, "%08d", i), value); err != nil {
				return err
			}
		}
		return nil
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

func open(data []byte) (*boltfile.File, error) {
	return boltfile.Open(bytes.NewReader(data), int64(len(data)))
}

// all reads a bucket; the keys come in their order.
func all(data []byte, bucket string) (keys []string, values map[string]string, err error) {
	f, err := open(data)
	if err != nil {
		return nil, nil, err
	}
	values = map[string]string{}
	err = f.Backward(bucket, func(key, value []byte) error {
		keys = append(keys, string(key))
		values[string(key)] = string(value)
		return nil
	})
	return keys, values, err
}

// Backward gives what bbolt reads.
func TestBackward(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, pageSize int }{{0, 4096}, {1, 4096}, {3000, 4096}, {500, 1024}, {3000, 16384}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			data := database(t, c.n, c.pageSize)
			path := filepath.Join(t.TempDir(), "db")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for _, bucket := range []string{"key", "meta", "alarm"} {
				want := map[string]string{}
				err = db.View(func(tx *bolt.Tx) error {
					return tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error { want[string(k)] = string(v); return nil })
				})
				if err != nil {
					t.Fatal(err)
				}
				keys, got, err := all(data, bucket)
				if err != nil || !maps.Equal(got, want) || len(keys) != len(want) {
					t.Fatalf("bucket %s: %d keys, %v; want %d", bucket, len(keys), err, len(want))
				}
				slices.Reverse(keys)
				if !slices.IsSorted(keys) {
					t.Errorf("bucket %s: the keys do not come from last to first", bucket)
				}
			}
		})
	}
}

func TestMissingBucket(t *testing.T) {
	t.Parallel()
	if _, _, err := all(database(t, 3, 4096), "nothing"); !errors.Is(err, boltfile.ErrNoBucket) {
		t.Errorf("error = %v, want ErrNoBucket", err)
	}
}

func TestStops(t *testing.T) {
	t.Parallel()
	f, err := open(database(t, 100, 4096))
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	calls := 0
	err = f.Backward("key", func(_, _ []byte) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("after %d calls: %v", calls, err)
	}
}

// A torn first meta page leaves the second, as bbolt does it.
func TestSecondMeta(t *testing.T) {
	t.Parallel()
	data := database(t, 100, 4096)
	clear(data[16:80])
	if keys, _, err := all(data, "key"); err != nil && !errors.Is(err, boltfile.ErrNoBucket) {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	clear(data[4096+16 : 4096+80])
	if _, err := open(data); !errors.Is(err, boltfile.ErrDamaged) {
		t.Errorf("without both meta pages: %v", err)
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	data := database(t, 300, 4096)
	for _, keep := range []int{0, 1, 15, 79, 80, 4095, 4096, 8192, len(data) / 2, len(data) - 4096, len(data) - 1} {
		// bbolt grows its file ahead: what lies behind the high-water mark may be missing.
		if _, _, err := all(data[:keep], "key"); err != nil && !errors.Is(err, boltfile.ErrDamaged) {
			t.Errorf("%d of %d bytes: %v, want ErrDamaged", keep, len(data), err)
		} else if err == nil && keep <= len(data)/2 {
			t.Errorf("%d of %d bytes are read without an error", keep, len(data))
		}
	}
}

// pageAt finds the first page with these flags.
func pageAt(t *testing.T, data []byte, flags uint16) []byte {
	t.Helper()
	for at := 2 * 4096; at < len(data); at += 4096 {
		if p := data[at:]; binary.LittleEndian.Uint64(p) == uint64(at/4096) && binary.LittleEndian.Uint16(p[8:]) == flags {
			return p
		}
	}
	t.Fatalf("no page with flags %#x", flags)
	return nil
}

// Forged pages, each of which bbolt follows to a crash or forever.
func TestForged(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for name, forge := range map[string]func(t *testing.T, data []byte){
		"child is itself": func(t *testing.T, data []byte) {
			p := pageAt(t, data, 1)
			for i := range int(binary.LittleEndian.Uint16(p[10:])) {
				binary.LittleEndian.PutUint64(p[16+16*i+8:], binary.LittleEndian.Uint64(p))
			}
		},
		"child far away":   func(t *testing.T, data []byte) { binary.LittleEndian.PutUint64(pageAt(t, data, 1)[24:], 1<<50) },
		"child is a meta":  func(t *testing.T, data []byte) { binary.LittleEndian.PutUint64(pageAt(t, data, 1)[24:], 0) },
		"many elements":    func(t *testing.T, data []byte) { binary.LittleEndian.PutUint16(pageAt(t, data, 1)[10:], 0xfffe) },
		"overflow":         func(t *testing.T, data []byte) { binary.LittleEndian.PutUint32(pageAt(t, data, 1)[12:], 0xffffffff) },
		"same child twice": func(t *testing.T, data []byte) { p := pageAt(t, data, 1); copy(p[24:32], p[40:48]) },
		"flags":            func(t *testing.T, data []byte) { binary.LittleEndian.PutUint16(pageAt(t, data, 1)[8:], 0x10) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := database(t, 2000, 4096)
			forge(t, data)
			if _, _, err := all(data, "key"); !errors.Is(err, boltfile.ErrDamaged) {
				t.Errorf("error = %v, want ErrDamaged", err)
			}
		})
	}
}

// Whatever the bytes, there is an answer or an error, in bounded time and memory, and never a key out of order.
func FuzzBackward(f *testing.F) {
	small := database(f, 40, 1024)[:16*1024]
	f.Add(small, uint32(0), uint64(0))
	f.Add(database(f, 3, 1024)[:12*1024], uint32(1024*3), uint64(1)<<40)
	f.Fuzz(func(t *testing.T, data []byte, at uint32, put uint64) {
		data = bytes.Clone(data)
		if i := int(at); i+8 <= len(data) {
			binary.LittleEndian.PutUint64(data[i:], put)
		}
		for _, bucket := range []string{"key", "meta"} {
			keys, _, err := all(data, bucket)
			if err != nil && !errors.Is(err, boltfile.ErrDamaged) && !errors.Is(err, boltfile.ErrNoBucket) {
				t.Fatal(err)
			}
			slices.Reverse(keys)
			if !slices.IsSortedFunc(keys, strings.Compare) {
				t.Fatal("keys out of order")
			}
		}
	})
}

// Branches that share their children would be gone through twice at each level: a small file must not cost hours.
func TestSharedChildren(t *testing.T) {
	t.Parallel()
	const size, levels = 4096, 20
	var file []byte
	page := func(flags uint16, elements ...[]byte) {
		p := make([]byte, size)
		binary.LittleEndian.PutUint64(p, uint64(len(file)/size))
		binary.LittleEndian.PutUint16(p[8:], flags)
		binary.LittleEndian.PutUint16(p[10:], uint16(len(elements)))
		copy(p[16:], bytes.Join(elements, nil))
		file = append(file, p...)
	}
	numbers := func(values ...uint32) (b []byte) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	for tx := range uint32(2) {
		meta := numbers(0xED0CDAED, 2, size, 0, 2, 0, 0, 0, 0, 0, 2+1+levels+1, 0, tx, 0)
		sum := fnv.New64a()
		_, _ = sum.Write(meta)
		page(4, binary.LittleEndian.AppendUint64(meta, sum.Sum64()))
	}
	page(2, append(numbers(1, 16, 3, 16), append([]byte("key"), numbers(3, 0, 0, 0)...)...))
	binary.LittleEndian.PutUint16(file[2*size+10:], 1)
	for range levels {
		next := uint32(len(file)/size + 1)
		page(1, numbers(0, 0, next, 0), numbers(0, 0, next, 0))
	}
	page(2)
	if _, _, err := all(file, "key"); !errors.Is(err, boltfile.ErrDamaged) {
		t.Errorf("error = %v, want ErrDamaged", err)
	}
}
