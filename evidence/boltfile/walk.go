package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrNoBucket: the database has no bucket of that name.
var ErrNoBucket = errors.New("no such bucket")

// maxDepth bounds the levels of a tree: with two children to a branch, the least that bbolt makes, 32 levels hold more
// than any disk.
const maxDepth = 32

// errStop ends a walk early.
var errStop = errors.New("stop")

// Backward calls each with every key and value of a bucket of the root, from the last key to the first. Both are valid
// during the call only. It ends with each's error. Other errors wrap ErrDamaged or ErrNoBucket, or are the reader's.
func (f *File) Backward(bucket string, each func(key, value []byte) error) error {
	value, err := f.bucket(bucket)
	if err != nil {
		return err
	}
	f.seen = 0
	w := walk{file: f, each: func(key, value []byte, isBucket bool) error {
		if isBucket {
			return fmt.Errorf("%w: a bucket inside the bucket %s", ErrDamaged, bucket)
		}
		return each(key, value)
	}}
	if err := w.bucket(value); err != nil {
		return fmt.Errorf("reading the bucket %s: %w", bucket, err)
	}
	return nil
}

// bucket finds a bucket of the root.
func (f *File) bucket(name string) ([]byte, error) {
	var found []byte
	f.seen = 0
	w := walk{file: f, each: func(key, value []byte, isBucket bool) error {
		if string(key) != name {
			return nil
		}
		if !isBucket {
			return fmt.Errorf("%w: %s is not a bucket", ErrDamaged, name)
		}
		found = bytes.Clone(value)
		return errStop
	}}
	err := w.page(f.root, 0)
	switch {
	case found != nil && errors.Is(err, errStop):
		return found, nil
	case err != nil:
		return nil, fmt.Errorf("looking for the bucket %s: %w", name, err)
	}
	return nil, fmt.Errorf("%w: %s", ErrNoBucket, name)
}

// walk goes through one tree from right to left.
type walk struct {
	file    *File
	each    func(key, value []byte, isBucket bool) error
	buffers [maxDepth][]byte
	last    []byte // the key before, to see that the order is strict: a page that stands twice in a tree breaks it
	started bool
}

// bucket goes through the tree that a bucket's value names or holds.
func (w *walk) bucket(value []byte) error {
	if len(value) < bucketSize {
		return fmt.Errorf("%w: its entry has %d bytes", ErrDamaged, len(value))
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return w.page(root, 0)
	}
	inline, err := parsePage(value[bucketSize:])
	if err != nil {
		return err
	}
	if !inline.leaf {
		return fmt.Errorf("%w: a branch page in place of a bucket's data", ErrDamaged)
	}
	return w.items(inline)
}

func (w *walk) page(id uint64, depth int) error {
	if depth >= maxDepth {
		return fmt.Errorf("%w: its tree has more than %d levels", ErrDamaged, maxDepth)
	}
	p, err := w.file.read(id, &w.buffers[depth])
	if err != nil {
		return err
	}
	if p.leaf {
		return w.items(p)
	}
	for i := p.count - 1; i >= 0; i-- {
		if err := w.page(p.child(i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) items(p page) error {
	for i := p.count - 1; i >= 0; i-- {
		key, value, isBucket, err := p.item(i)
		if err != nil {
			return err
		}
		if w.started && bytes.Compare(key, w.last) >= 0 {
			return fmt.Errorf("%w: its keys are not in order", ErrDamaged)
		}
		w.last, w.started = append(w.last[:0], key...), true
		if err := w.each(key, value, isBucket); err != nil {
			return err
		}
	}
	return nil
}
