package noncememory

import (
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

var keyA, keyB = [8]byte{1}, [8]byte{2}

func nonce(n int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 4), uint64(n)) }

func mustNote(t *testing.T, m *Memory, token string, key [8]byte, n int) {
	t.Helper()
	if err := m.Note(token, key, nonce(n)); err != nil {
		t.Fatal(err)
	}
}

func isRepeat(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, envelope.ErrNonceRepeated) || hint.Of(err) == "" {
		t.Errorf("got %v, want ErrNonceRepeated with a hint", err)
	}
}

// A repeat is found on the same token, on another one, and after a restart, and refuses that token and that key for good.
func TestRepeats(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := New(dir)
	mustNote(t, m, "a", keyA, 1)
	mustNote(t, m, "a", keyA, 2)
	mustNote(t, m, "a", keyB, 1) // another key
	if err := m.Check("a", keyA); err != nil {
		t.Error(err)
	}
	isRepeat(t, m.Note("b", keyA, nonce(2))) // one counter in two tokens
	isRepeat(t, m.Note("b", keyA, nonce(3))) // it is refused
	mustNote(t, m, "b", keyB, 3)
	mustNote(t, m, "a", keyA, 3)
	m = New(dir)
	isRepeat(t, m.Check("b", keyA))
	isRepeat(t, m.Note("a", keyA, nonce(1)))
	isRepeat(t, New(dir).Check("a", keyA))
	if err := New(dir).Check("a", keyB); err != nil {
		t.Error(err)
	}
}

// 12 bytes and 16 are two nonces.
func TestLengthsAreApart(t *testing.T) {
	t.Parallel()
	m := New(t.TempDir())
	mustNote(t, m, "a", keyA, 7)
	if err := m.Note("a", keyA, append(nonce(7), 0, 0, 0, 0)); err != nil {
		t.Error(err)
	}
}

// Nonces that one process notes are known to another one; many at once lose nothing.
func TestSeveralProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var all sync.WaitGroup
	for p := range 4 {
		m := New(dir) // each with a lock of its own, as in processes
		all.Go(func() {
			for i := range 50 {
				if err := m.Note("a", keyA, nonce(p*1000+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	m := New(dir)
	if err := m.Check("a", keyA); err != nil || m.next != 200 || len(m.recent) != 200 {
		t.Errorf("%v; %d noted, %d known", err, m.next, len(m.recent))
	}
	isRepeat(t, m.Note("a", keyA, nonce(3049)))
}

// The oldest are forgotten, and no others.
func TestForgetsTheOldest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := New(dir)
	mustNote(t, m, "a", keyA, 0)
	var many []byte // as if they had been noted
	for i := 1; i < Kept; i++ {
		d := sum("nonce", keyA[:], nonce(i))
		many = append(many, d[:]...)
	}
	path := filepath.Join(dir, "nonces")
	if err := errors.Join(overwrite(path, noncesAt+slotSize, string(many)), overwrite(path, nextAt, string(binary.BigEndian.AppendUint64(nil, Kept)))); err != nil {
		t.Fatal(err)
	}
	m = New(dir)
	isRepeat(t, m.Note("b", keyA, nonce(0)))
	mustNote(t, m, "a", keyA, Kept)
	mustNote(t, m, "a", keyA, 0)
	isRepeat(t, m.Note("c", keyA, nonce(2)))
	if len(m.recent) != Kept {
		t.Errorf("%d are known", len(m.recent))
	}
	if st, err := os.Stat(filepath.Join(dir, "nonces")); err != nil || st.Size() != fileSize || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

// Notes of another process are taken up also where the file begins again from the front.
func TestTakesUpAroundTheEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustNote(t, New(dir), "a", keyA, 0)
	if err := overwrite(filepath.Join(dir, "nonces"), nextAt, string(binary.BigEndian.AppendUint64(nil, Kept-2))); err != nil {
		t.Fatal(err)
	}
	m, other := New(dir), New(dir)
	if err := m.Check("a", keyA); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		mustNote(t, other, "a", keyA, 100+i)
	}
	if err := m.Check("a", keyA); err != nil {
		t.Fatal(err)
	}
	whole := New(dir)
	if err := whole.Check("a", keyA); err != nil || !maps.Equal(m.recent, whole.recent) || !maps.Equal(m.recent, other.recent) || len(m.recent) != 5 || m.next != Kept+3 {
		t.Errorf("%v; %d known, %d by who noted them, %d in the file; next %d", err, len(m.recent), len(other.recent), len(whole.recent), m.next)
	}
	isRepeat(t, m.Note("b", keyA, nonce(104)))
	mustNote(t, m, "a", keyA, 0) // its slot was the first
}

// A file that cannot be understood, read or made stops the seal.
func TestFailsClosed(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir, path string) error{
		"cut":         func(_, path string) error { return os.Truncate(path, fileSize-1) },
		"longer":      func(_, path string) error { return os.Truncate(path, fileSize+1) },
		"empty":       func(_, path string) error { return os.Truncate(path, 0) },
		"other magic": func(_, path string) error { return overwrite(path, 0, "hsm-kms nonces 2") },
		"a folder":    func(_, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"a link":      func(dir, path string) error { return errors.Join(os.Remove(path), os.Symlink(dir+"/x", path)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			mustNote(t, New(dir), "a", keyA, 1)
			if err := spoil(dir, filepath.Join(dir, "nonces")); err != nil {
				t.Fatal(err)
			}
			if err := New(dir).Note("a", keyA, nonce(2)); !errors.Is(err, envelope.ErrNonceMemory) || hint.Of(err) == "" {
				t.Errorf("%v", err)
			}
		})
	}
	if err := New(filepath.Join(t.TempDir(), "none")).Note("a", keyA, nonce(2)); !errors.Is(err, envelope.ErrNonceMemory) {
		t.Errorf("without a stateDir: %v", err)
	}
}

// With a list of refusals that is full nothing is sealed: another repeat could not be noted.
func TestManyRefusals(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := New(dir)
	for i := range maxRefusals {
		key := [8]byte{9, byte(i)}
		mustNote(t, m, "a", key, 1)
		isRepeat(t, m.Note("a", key, nonce(1)))
	}
	for _, m := range []*Memory{m, New(dir)} {
		isRepeat(t, m.Check("a", [8]byte{9, maxRefusals - 1}))
		for _, err := range []error{m.Check("a", keyA), m.Note("a", keyA, nonce(1)), m.Note("b", keyA, nonce(2))} {
			if !errors.Is(err, envelope.ErrNonceMemory) || errors.Is(err, envelope.ErrNonceRepeated) || hint.Of(err) == "" {
				t.Errorf("%v", err)
			}
		}
	}
}

func overwrite(path string, at int64, with string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(with), at)
	return errors.Join(err, f.Close())
}
