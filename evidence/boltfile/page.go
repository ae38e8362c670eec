package boltfile

import (
	"encoding/binary"
	"fmt"
)

const (
	headerSize  = 16
	elementSize = 16
	branchFlag  = 0x01
	leafFlag    = 0x02
	bucketFlag  = 0x01 // of a leaf's element
	bucketSize  = 16

	// maxPage bounds what one page with its overflow makes us allocate, in bytes. etcd takes values of 1.5 MiB unless told
	// otherwise, and advises against more than 10 MiB; a page holds a few.
	maxPage = 64 << 20
)

// page is a branch or a leaf, its header checked. Its elements are checked when they are taken.
type page struct {
	leaf  bool
	count int
	bytes []byte
}

// parsePage checks the header of a page and that its elements have room.
func parsePage(b []byte) (page, error) {
	if len(b) < headerSize {
		return page{}, fmt.Errorf("%w: a page of %d bytes", ErrDamaged, len(b))
	}
	p := page{count: int(binary.LittleEndian.Uint16(b[10:])), bytes: b}
	switch flags := binary.LittleEndian.Uint16(b[8:]); flags {
	case leafFlag:
		p.leaf = true
	case branchFlag:
		if p.count == 0 {
			return page{}, fmt.Errorf("%w: a branch page without children", ErrDamaged)
		}
	default:
		return page{}, fmt.Errorf("%w: a page with flags %#x where data was expected", ErrDamaged, flags)
	}
	if headerSize+p.count*elementSize > len(b) {
		return page{}, fmt.Errorf("%w: a page of %d bytes says that it has %d elements", ErrDamaged, len(b), p.count)
	}
	return p, nil
}

// element returns the i-th element's fixed part and all that follows it in the page.
func (p page) element(i int) (fixed, from []byte) {
	from = p.bytes[headerSize+i*elementSize:]
	return from[:elementSize], from
}

// item returns the i-th key and value of a leaf.
func (p page) item(i int) (key, value []byte, isBucket bool, err error) {
	fixed, from := p.element(i)
	flags := binary.LittleEndian.Uint32(fixed)
	position := uint64(binary.LittleEndian.Uint32(fixed[4:]))
	keySize := uint64(binary.LittleEndian.Uint32(fixed[8:]))
	valueSize := uint64(binary.LittleEndian.Uint32(fixed[12:]))
	if end := position + keySize + valueSize; end > uint64(len(from)) {
		return nil, nil, false, fmt.Errorf("%w: an element reaches %d bytes beyond its page", ErrDamaged, end-uint64(len(from)))
	}
	key = from[position : position+keySize]
	return key, from[position+keySize : position+keySize+valueSize], flags&bucketFlag != 0, nil
}

// child returns the page number of a branch's i-th child.
func (p page) child(i int) uint64 {
	fixed, _ := p.element(i)
	return binary.LittleEndian.Uint64(fixed[8:])
}
