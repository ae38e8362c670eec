package guard

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// Unless the disk was full (makeEmpty), a record is a file of two halves, which has its whole length from the beginning: a disk
// that is full later does not keep it from being written. The halves are written in turns, so that one is whole whenever the
// machine stops. A half is a line of JSON, a line with its SHA-256, and zeros.
const (
	halfSize = 4096
	halves   = 2
	maxTries = 16 // PINs; the oldest goes first
	keySize  = 16
)

type record struct {
	Sequence uint64 `json:"sequence"` // the half with the higher one counts
	Token    string `json:"token"`
	Key      []byte `json:"key"`   // of the tags
	Tries    []try  `json:"tries"` // the newest is the last
}

// find returns the try with a tag; there is always one.
func (r *record) find(tag uint32) try {
	for _, t := range r.Tries {
		if t.Tag == tag {
			return t
		}
	}
	return try{Tag: tag}
}

// file is a record that is open.
type file struct {
	*os.File
	path   string
	record record
}

func (f *file) close() { _ = f.Close() } // what was written is on the disk

// openOrMake opens a token's record; if there is none, it makes one.
func (g *Guard) openOrMake(token Token) (*file, error) {
	f, err := g.open(token)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	first := record{Token: token.Name, Key: make([]byte, keySize)}
	_, _ = rand.Read(first.Key) // it never fails
	half, err := first.encode()
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteState(g.path(token), append(half, make([]byte, halfSize*(halves-1))...)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return g.open(token)
}

// open reads a token's record. Errors wrap fs.ErrNotExist, or ErrState, or, of an attempt that could not be recorded,
// ErrStands. A record that cannot be understood stands against every PIN: it may be the only trace of a refused one.
func (g *Guard) open(token Token) (_ *file, err error) {
	path := g.path(token)
	// A FIFO in its place must not hang the login: O_NONBLOCK is for the opening, and a read at an offset fails of it.
	opened, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	defer func() {
		if err != nil {
			_ = opened.Close()
		}
	}()
	data, err := io.ReadAll(io.NewSectionReader(opened, 0, halfSize*halves+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	case len(data) == 0:
		return nil, fmt.Errorf("%w (on a full disk, which took no record of the outcome)", ErrStands)
	}
	f := &file{File: opened, path: path}
	found := false
	for i := 0; len(data) == halfSize*halves && i < halves; i++ {
		var r record
		if r.decode(data[i*halfSize:(i+1)*halfSize]) && r.Token == token.Name && (!found || r.Sequence > f.record.Sequence) {
			f.record, found = r, true
		}
	}
	if !found {
		return nil, fmt.Errorf("%w: %s is not a record of this program", ErrState, path)
	}
	return f, nil
}

// put makes t the newest try of the record, on the disk.
func (f *file) put(t try) error {
	r := f.record
	r.Sequence++
	r.Tries = append(slices.DeleteFunc(slices.Clone(r.Tries), func(old try) bool { return old.Tag == t.Tag }), t)
	r.Tries = r.Tries[max(0, len(r.Tries)-maxTries):]
	half, err := r.encode()
	if err != nil {
		return err
	}
	_, err = f.WriteAt(half, int64(r.Sequence%halves)*halfSize)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, ownedfile.Explain(f.path, err))
	}
	f.record = r
	return nil
}

func (r *record) encode() ([]byte, error) {
	line, err := json.Marshal(r)
	sum := sha256.Sum256(line)
	half := append(append(line, '\n'), hex.EncodeToString(sum[:])+"\n"...)
	if err != nil || len(half) > halfSize {
		return nil, fmt.Errorf("%w: the record has %d bytes (%v)", ErrState, len(half), err)
	}
	return append(half, make([]byte, halfSize-len(half))...), nil
}

// decode fills r from one half of the file and reports whether that half is whole; if not, r is of no use.
func (r *record) decode(half []byte) bool {
	line, rest, found := bytes.Cut(half, []byte("\n"))
	sum := sha256.Sum256(line)
	return found && bytes.HasPrefix(rest, []byte(hex.EncodeToString(sum[:])+"\n")) &&
		json.Unmarshal(line, r) == nil && len(r.Key) == keySize
}

// makeEmpty makes the empty file that stands for a record on a full disk (attemptOnFullDisk): open refuses every PIN while it is
// there. It returns when the file is on the disk.
func makeEmpty(path string) error {
	made, err := ownedfile.Make(path, os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(made.Sync(), made.Close())
	}
	if err == nil {
		var folder *os.File
		if folder, err = os.Open(filepath.Dir(path)); err == nil {
			err = errors.Join(folder.Sync(), folder.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, ownedfile.Explain(path, err))
	}
	return nil
}
