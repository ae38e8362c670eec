// Package snapshot reads what etcdctl and etcdutl save, and etcd's own member/snap/db, as an evidence.Source. It
// depends on evidence, on boltfile, which reads the pages, and on envelope/stored, filelock and hint. A File is used by one
// goroutine at a time.
//
// A saved snapshot is the database followed by its SHA-256; the file's length modulo 512 tells (etcdutl, snapshot
// package). member/snap/db has none. In the bucket "key" every revision since the last compaction is one item:
//
//	key    main revision (8, big-endian) | "_" | sub revision (8), and "t" after it when the key was deleted there
//	value  mvccpb.KeyValue; of a deletion with the key alone
//
// etcdutl snapshot restore --bump-revision adds one item whose value is empty. It marks a revision and is no object: see
// isMark. An object has a key, so its value here is never empty.
//
// So the newest revision of each key is the first that is met when the bucket is read backwards.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/boltfile"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// diskSector is what the length of a database is a multiple of (etcdutl's hasChecksum).
const diskSector = 512

// Options say how to read.
type Options struct {
	Prefixes []string // of the API server in etcd, such as /registry
	Progress evidence.Progress
}

// File is an open snapshot. It is used by one goroutine at a time.
type File struct {
	path   string
	file   *os.File
	size   int64       // of the database, without the hash
	hashed bool        // a hash follows it
	opened os.FileInfo // to see whether somebody writes to it
	sha256 string      // of checkHash; empty: not checked yet, or there is none
	opts   Options
}

// Open opens a snapshot. Its integrity hash, if it has one, is checked by each Read and Find. Errors wrap evidence.ErrDamaged, or are the
// system's. The caller closes it.
func Open(path string, opts Options) (*File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) //nolint:gosec // the operator names it; a FIFO must not hang
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("opening the snapshot: %w", err), "give the path of a file that etcdctl snapshot save wrote, or of member/snap/db")
	}
	f := &File{path: path, file: file, opts: opts}
	if err := f.check(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the snapshot %s: %w", path, err), file.Close())
	}
	return f, nil
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

func (f *File) check() error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return hint.Wrap(errors.New("it is not a file"), "of etcd's data folder give the file member/snap/db")
	}
	// etcd holds an exclusive lock on its own file: read while it writes, the file would be torn.
	if err := filelock.TryShared(f.file); errors.Is(err, filelock.ErrHeld) {
		return hint.Wrap(errors.New("a running etcd has it open"), "ask that etcd with --endpoints, or save a snapshot of it with: etcdctl snapshot save FILE")
	}
	f.size, f.opened = info.Size(), info
	switch f.size % diskSector {
	case 0:
		return nil
	case sha256.Size:
		f.size -= sha256.Size
		f.hashed = true
		return nil
	}
	return hint.Wrap(fmt.Errorf("%w: no snapshot has %d bytes: it was cut short, or is something else", evidence.ErrDamaged, f.size),
		"take the snapshot from another copy")
}

// checkHash compares the file's bytes with the hash that follows them, if there is one. progress may be nil. Nothing else of f
// changes meanwhile.
func (f *File) checkHash(ctx context.Context, progress evidence.Progress) error {
	if !f.hashed {
		return nil
	}
	sum := sha256.New()
	buffer := make([]byte, 1<<20)
	for at := int64(0); at < f.size; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("checking the integrity hash: %w", err)
		}
		n, err := f.file.ReadAt(buffer[:min(int64(len(buffer)), f.size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return fmt.Errorf("checking the integrity hash: %w", err)
		}
		_, _ = sum.Write(buffer[:n]) // a hash never fails
		at += int64(n)
		if progress != nil {
			progress("checking the integrity hash", at, f.size)
		}
	}
	var want [sha256.Size]byte
	if _, err := f.file.ReadAt(want[:], f.size); err != nil {
		return fmt.Errorf("reading the integrity hash: %w", err)
	}
	if got := sum.Sum(nil); [sha256.Size]byte(got) != want {
		return hint.Wrap(fmt.Errorf("%w: its bytes do not give the integrity hash that was saved with it", evidence.ErrDamaged),
			"take the snapshot from another copy; this one was changed or cut short after it was saved")
	}
	f.sha256 = hex.EncodeToString(want[:])
	return nil
}

// unchanged returns an error if somebody has written to the file since it was opened. What was parsed and what was hashed would not be
// the same bytes then.
func (f *File) unchanged() error {
	info, err := f.file.Stat()
	if err == nil && (info.Size() != f.opened.Size() || !info.ModTime().Equal(f.opened.ModTime())) {
		err = hint.Wrap(fmt.Errorf("%w: it was changed while it was read", evidence.ErrDamaged), "run it again once nothing writes to the file, or take the snapshot from another copy")
	}
	return err
}

// damaged turns what boltfile says into what callers of this package know, and says what to do about damage.
func damaged(err error) error {
	if errors.Is(err, boltfile.ErrDamaged) || errors.Is(err, boltfile.ErrNoBucket) {
		err = fmt.Errorf("%w: %w", evidence.ErrDamaged, err)
	}
	if errors.Is(err, evidence.ErrDamaged) {
		return hint.Wrap(err, "take the snapshot from another copy")
	}
	return err
}
