package boltfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// ErrDamaged: the file is not a bbolt database, or not a whole one.
var ErrDamaged = errors.New("damaged database file")

const (
	magic      = 0xED0CDAED
	version    = 2
	metaSize   = 64
	minPage    = 1024
	maxPageLog = 6 // page sizes from 1 kB to 64 kB
)

// File is a database. It is read by one goroutine at a time.
type File struct {
	r        io.ReaderAt
	pageSize int64
	root     uint64 // page of the root bucket
	pages    uint64 // high-water mark: every page number is below it
	seen     uint64 // pages read by the walk that runs

	Progress func(done, total int64) // called now and then with pages; nil: nobody asks
}

// Open reads the two meta pages of a database of size bytes. The error wraps ErrDamaged, or is the reader's.
func Open(r io.ReaderAt, size int64) (*File, error) {
	var best *File
	var transaction uint64
	var reason error
	try := func(at int64) {
		f, tx, err := readMeta(r, at)
		switch {
		case err != nil:
			if reason == nil {
				reason = err
			}
		case best == nil || tx > transaction:
			best, transaction = f, tx
		}
	}
	try(0)
	for i := range maxPageLog + 1 {
		if at := int64(minPage) << i; at+headerSize+metaSize <= size && (best == nil || at == best.pageSize) {
			try(at)
		}
	}
	if best == nil {
		return nil, reason
	}
	if whole := int64(best.pages) * best.pageSize; whole > size { //nolint:gosec // checked by readMeta
		return nil, fmt.Errorf("%w: it was cut short: %d bytes are there, %d belong to it", ErrDamaged, size, whole)
	}
	return best, nil
}

func readMeta(r io.ReaderAt, at int64) (*File, uint64, error) {
	var b [headerSize + metaSize]byte
	if _, err := r.ReadAt(b[:], at); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, 0, fmt.Errorf("%w: too short to be a database", ErrDamaged)
		}
		return nil, 0, fmt.Errorf("reading the database: %w", err)
	}
	m := b[headerSize:]
	sum := fnv.New64a()
	_, _ = sum.Write(m[:56]) // a hash never fails
	pageSize := int64(binary.LittleEndian.Uint32(m[8:]))
	f := &File{r: r, pageSize: pageSize, root: binary.LittleEndian.Uint64(m[16:]), pages: binary.LittleEndian.Uint64(m[40:])}
	switch {
	case binary.BigEndian.Uint32(m) == magic:
		return nil, 0, fmt.Errorf("%w: it was written on a big-endian machine", ErrDamaged)
	case binary.LittleEndian.Uint32(m) != magic:
		return nil, 0, fmt.Errorf("%w: it does not begin as a database of etcd", ErrDamaged)
	case binary.LittleEndian.Uint32(m[4:]) != version:
		return nil, 0, fmt.Errorf("%w: format version %d, only %d is known", ErrDamaged, binary.LittleEndian.Uint32(m[4:]), version)
	case binary.LittleEndian.Uint64(m[56:]) != sum.Sum64():
		return nil, 0, fmt.Errorf("%w: the checksum of its first page is wrong", ErrDamaged)
	case pageSize < minPage || pageSize > minPage<<maxPageLog || pageSize&(pageSize-1) != 0:
		return nil, 0, fmt.Errorf("%w: its page size is %d", ErrDamaged, pageSize)
	case f.pages < 2 || f.pages > 1<<40:
		return nil, 0, fmt.Errorf("%w: it says that it has %d pages", ErrDamaged, f.pages)
	case at != 0 && at != pageSize:
		return nil, 0, fmt.Errorf("%w: its second page is not where its page size says", ErrDamaged)
	}
	return f, binary.LittleEndian.Uint64(m[48:]), nil
}

// read reads the page of that number with its overflow into buf, which grows as needed.
func (f *File) read(id uint64, buf *[]byte) (page, error) {
	if id < 2 || id >= f.pages {
		return page{}, fmt.Errorf("%w: it refers to page %d of %d", ErrDamaged, id, f.pages)
	}
	at := int64(id) * f.pageSize //nolint:gosec // both bounded by Open
	if err := f.fill(buf, at, f.pageSize); err != nil {
		return page{}, err
	}
	if got := binary.LittleEndian.Uint64(*buf); got != id {
		return page{}, fmt.Errorf("%w: page %d says that it is page %d", ErrDamaged, id, got)
	}
	more := uint64(binary.LittleEndian.Uint32((*buf)[12:]))
	f.seen += 1 + more
	if f.seen > f.pages || id+more >= f.pages {
		return page{}, fmt.Errorf("%w: page %d belongs to itself or reaches beyond the end", ErrDamaged, id)
	}
	if more > 0 {
		size := int64(more+1) * f.pageSize //nolint:gosec // bounded by pages
		if size > maxPage {
			return page{}, fmt.Errorf("%w: page %d has %d bytes, %d are allowed", ErrDamaged, id, size, maxPage)
		}
		if err := f.fill(buf, at, size); err != nil {
			return page{}, err
		}
	}
	if f.Progress != nil && f.seen&0xfff <= more {
		f.Progress(int64(f.seen), int64(f.pages)) //nolint:gosec // bounded by pages
	}
	return parsePage(*buf)
}

func (f *File) fill(buf *[]byte, at, size int64) error {
	if int64(cap(*buf)) < size {
		*buf = make([]byte, size)
	}
	*buf = (*buf)[:size]
	if _, err := f.r.ReadAt(*buf, at); errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it became shorter while it was read", ErrDamaged)
	} else if err != nil {
		return fmt.Errorf("reading the database: %w", err)
	}
	return nil
}
