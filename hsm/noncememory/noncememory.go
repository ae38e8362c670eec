// Package noncememory remembers the nonces that HSMs have made of late, because two messages under one nonce give both
// away, and the key's authentication with them. It is one file in stateDir for all tokens and keys of a node, so that two
// tokens with one counter are found, and a counter that begins again after a restart.
//
// The file has its whole length from the beginning, so that a full disk does not stop the plugin:
//
//	header    64 bytes: magic (16) | random name (16) | nonces ever noted (8, big-endian) | zeros
//	refusals  64 slots of 16 bytes: which token seals no more with which key
//	nonces    65,536 slots of 16 bytes, written in turns
//
// A slot is a truncated SHA-256; zeros: empty. Every access holds the lock of the file. A nonce is in the file before
// anything leaves the process that was sealed under it. It is not synced to the disk: after a power failure of this node
// the last few may be missing.
//
// It depends on envelope for the names of keys, and on filelock, atomicfile, ownedfile and hint. All methods may be called
// from any number of goroutines.
package noncememory

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

const (
	magic       = "hsm-kms nonces 1"
	headerSize  = 64
	nextAt      = 32
	slotSize    = 16
	maxRefusals = 64
	noncesAt    = headerSize + maxRefusals*slotSize

	// Kept is how many nonces are remembered, over all keys.
	Kept     = 1 << 16
	fileSize = noncesAt + Kept*slotSize
)

// lockWait bounds the wait for another process that has the file.
const lockWait = 2 * time.Second

type digest [slotSize]byte

// Memory is the file of one stateDir. The zero value is not usable.
//
// Concurrency: its methods may be called from any number of goroutines, and other processes may use the file as well.
type Memory struct {
	path string

	mu      sync.Mutex // guards the fields below
	name    [16]byte   // of the file that the rest was read from
	next    uint64
	slots   []digest // as in the file; nil: it was not read yet
	recent  map[digest]struct{}
	refused map[digest]struct{}
}

// New prepares the memory in stateDir; the file is made at its first use.
func New(stateDir string) *Memory { return &Memory{path: filepath.Join(stateDir, "nonces")} }

// Note remembers a nonce that the token made for the key with this fingerprint. Errors: envelope.ErrNonceRepeated when any
// token has made it for that key before, and from then on always for this token and key; envelope.ErrNonceMemory.
func (m *Memory) Note(token string, key [envelope.FingerprintSize]byte, nonce []byte) error {
	return m.use(func(file *os.File) error {
		if err := m.maySeal(token, key); err != nil {
			return err
		}
		noted := sum("nonce", key[:], nonce)
		if _, known := m.recent[noted]; known {
			return errors.Join(repeated(token), m.refuse(file, refusalOf(token, key)))
		}
		return m.add(file, noted)
	})
}

// Check reports, with envelope.ErrNonceRepeated, that the token seals no more with the key. Other errors: envelope.ErrNonceMemory.
func (m *Memory) Check(token string, key [envelope.FingerprintSize]byte) error {
	return m.use(func(*os.File) error { return m.maySeal(token, key) })
}

// maySeal is nil where there is no refusal, and room for one: a repeat that could not be noted would be forgotten.
// m.mu is held.
func (m *Memory) maySeal(token string, key [envelope.FingerprintSize]byte) error {
	if _, refused := m.refused[refusalOf(token, key)]; refused {
		return repeated(token)
	}
	if len(m.refused) >= maxRefusals {
		return stateError(fmt.Errorf("%s notes %d keys with which a token repeated a nonce, and has no room for more", m.path, maxRefusals))
	}
	return nil
}

func repeated(token string) error {
	return hint.Wrap(fmt.Errorf("token %s: %w: it seals no more with that key", token, envelope.ErrNonceRepeated),
		"make a new key with hsm-kms keys rotate, and find out from the HSM's vendor why it repeats nonces; what was sealed stays readable")
}

// refusalOf and sum tell apart what is noted by its first word; the key has a fixed length.
func refusalOf(token string, key [envelope.FingerprintSize]byte) digest {
	return sum("refused", key[:], []byte(token))
}

func sum(what string, key, rest []byte) digest {
	all := sha256.Sum256(bytes.Join([][]byte{[]byte(what), {0}, key, rest}, nil))
	return digest(all[:slotSize])
}

// use locks the file, reads what is new in it, and calls f with mu held.
func (m *Memory) use(f func(*os.File) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	file, err := m.open()
	if err != nil {
		return stateError(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	if err := filelock.WaitFile(ctx, file); err != nil {
		return stateError(errors.Join(err, file.Close()))
	}
	if err := m.read(file); err != nil {
		return stateError(errors.Join(err, filelock.Release(file)))
	}
	err = f(file)
	if releaseErr := filelock.Release(file); releaseErr != nil {
		return errors.Join(err, stateError(releaseErr))
	}
	return err
}

func stateError(err error) error {
	return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrNonceMemory, err),
		"make stateDir a folder that this user can write; a file of nonces that is damaged may be moved away, and then the ring's key must be rotated")
}

// open opens the file; if there is none, it makes one.
func (m *Memory) open() (*os.File, error) {
	const flags = os.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK // a FIFO in its place must not hang the seal
	file, err := os.OpenFile(m.path, flags, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	// Two processes may both find none. The one lock that lasts keeps the second from replacing what the first has written.
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	lock, err := filelock.Wait(ctx, m.path+".lock")
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Unlock() }()
	file, err = os.OpenFile(m.path, flags, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	empty := make([]byte, fileSize)
	copy(empty, magic)
	_, _ = rand.Read(empty[len(magic):nextAt]) // it never fails
	if err := atomicfile.WriteState(m.path, empty); err != nil {
		return nil, ownedfile.Explain(m.path, err)
	}
	return os.OpenFile(m.path, flags, 0)
}

// read takes up what the file has, if that is not what was read last. m.mu is held.
func (m *Memory) read(file *os.File) error {
	header := make([]byte, noncesAt)
	if _, err := file.ReadAt(header, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if st.Size() != fileSize || string(header[:len(magic)]) != magic {
		return fmt.Errorf("%s is not a file of this program", m.path)
	}
	m.refused = slots(header[headerSize:])
	name, next := [16]byte(header[len(magic):nextAt]), binary.BigEndian.Uint64(header[nextAt:])
	if m.slots == nil || m.name != name || next < m.next || next-m.next > Kept {
		m.name, m.next, m.slots, m.recent = name, next, make([]digest, Kept), map[digest]struct{}{}
		return m.readSlots(file, 0, Kept)
	}
	// Only what others have noted is read: the lock is held meanwhile, and others wait for it.
	for m.next < next {
		from := m.next % Kept
		n := min(next-m.next, Kept-from)
		if err := m.readSlots(file, from, n); err != nil {
			return err
		}
		m.next += n
	}
	return nil
}

// readSlots reads n slots of nonces. After an error the whole file is read again. m.mu is held.
func (m *Memory) readSlots(file *os.File, from, n uint64) error {
	b := make([]byte, n*slotSize)
	if _, err := file.ReadAt(b, int64(noncesAt+from*slotSize)); err != nil {
		m.slots = nil
		return err
	}
	for i := range n {
		m.put(from+i, digest(b[i*slotSize:]))
	}
	return nil
}

// put takes up what a slot has now. m.mu is held.
func (m *Memory) put(slot uint64, d digest) {
	delete(m.recent, m.slots[slot])
	m.slots[slot] = d
	if d != (digest{}) {
		m.recent[d] = struct{}{}
	}
}

func slots(b []byte) map[digest]struct{} {
	set := map[digest]struct{}{}
	for ; len(b) >= slotSize; b = b[slotSize:] {
		if d := digest(b[:slotSize]); d != (digest{}) {
			set[d] = struct{}{}
		}
	}
	return set
}

// add writes the nonce to the slot of the oldest. m.mu is held.
func (m *Memory) add(file *os.File, noted digest) error {
	slot := m.next % Kept
	if _, err := file.WriteAt(noted[:], int64(noncesAt+slot*slotSize)); err != nil {
		return stateError(err)
	}
	if _, err := file.WriteAt(binary.BigEndian.AppendUint64(nil, m.next+1), nextAt); err != nil {
		return stateError(err)
	}
	m.put(slot, noted)
	m.next++
	return nil
}

// refuse notes that a token seals no more with a key. It is not forgotten: a full list is one that somebody must look at.
// maySeal has found room for it. m.mu is held.
func (m *Memory) refuse(file *os.File, refusal digest) error {
	at := int64(headerSize + len(m.refused)*slotSize)
	if _, err := file.WriteAt(refusal[:], at); err != nil {
		return stateError(err)
	}
	if err := file.Sync(); err != nil {
		return stateError(err)
	}
	m.refused[refusal] = struct{}{}
	return nil
}
