package hold

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// page is one page of memory with the process key. It is locked, so that it never goes to swap, and left out of core files. What it
// seals lies in ordinary memory and is of no use without it.
//
// The key must not leave the page: the ciphers of the standard library keep a key schedule in memory that nobody can wipe. So
// the key stream is SHA-256 over one block that is put together in the page itself, and that the hash reads there: key, number of
// the secret, number of the block.
//
// It is not safe for concurrent use: store.mu guards it.
type page struct {
	memory []byte
	last   uint64 // number of the last secret that was sealed under this key
}

const (
	keySize   = 32
	block     = sha256.BlockSize
	scratchAt = block // the key has a block of its own
	tagSize   = 16
)

// purposes of a block: the key stream, and the tag.
const (
	forStream = 1
	forTag    = 2
)

// newPage makes the page, without a key.
func newPage() (*page, error) {
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("making a page of memory: %w", err)
	}
	err = unix.Mlock(memory)
	if err == nil {
		err = leaveOutOfCores(memory)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking a page of memory: %w", err), unix.Munmap(memory))
	}
	return &page{memory: memory}, nil
}

// draw makes a new key. What was sealed under another one is lost.
func (p *page) draw() {
	_, _ = rand.Read(p.memory[:keySize]) // it never fails
	p.last = 0
}

func (p *page) wipe() { clear(p.memory) }

// sealed is a secret that only the page can open.
type sealed struct {
	number uint64
	data   []byte
	tag    [tagSize]byte
}

// wipe clears it.
func (s *sealed) wipe() {
	clear(s.data)
	*s = sealed{}
}

func (p *page) seal(secret []byte) sealed {
	p.last++
	s := sealed{number: p.last, data: make([]byte, len(secret))}
	p.crypt(s.number, s.data, secret)
	s.tag = p.tag(s.number, secret)
	return s
}

// errDamaged: the memory changed by itself, or the page was wiped since.
var errDamaged = errors.New("what is held in memory is damaged")

// open writes the secret into out, which is as long as it. With an error out is wiped.
func (p *page) open(s *sealed, out []byte) error {
	p.crypt(s.number, out, s.data)
	tag := p.tag(s.number, out)
	if subtle.ConstantTimeCompare(tag[:], s.tag[:]) != 1 {
		clear(out)
		return errDamaged
	}
	return nil
}

// crypt adds the key stream of a secret to in.
func (p *page) crypt(number uint64, out, in []byte) {
	for i := 0; i*sha256.Size < len(in); i++ {
		stream := sha256.Sum256(p.head(forStream, number, uint32(i), block))
		at := i * sha256.Size
		subtle.XORBytes(out[at:], in[at:min(at+sha256.Size, len(in))], stream[:])
		clear(stream[:])
	}
	burnStack()
}

// tag authenticates a secret: memory that was damaged must not pass for a key under which an API server writes. The secret
// is copied into the page, in whole blocks, because the hash keeps a copy of what is less than a block.
func (p *page) tag(number uint64, secret []byte) (tag [tagSize]byte) {
	size := block + (len(secret)+block-1)/block*block
	text := p.head(forTag, number, uint32(len(secret)), size)
	copy(text[block:], secret)
	sum := sha256.Sum256(text)
	clear(text)
	burnStack()
	return [tagSize]byte(sum[:tagSize])
}

// head begins what is hashed, in the page: size bytes, of which the first block is filled in and the others are zero.
func (p *page) head(purpose byte, number uint64, n uint32, size int) []byte {
	text := p.memory[scratchAt : scratchAt+size]
	clear(text)
	copy(text, p.memory[:keySize])
	text[keySize] = purpose
	binary.BigEndian.PutUint64(text[keySize+8:], number)
	binary.BigEndian.PutUint32(text[keySize+16:], n)
	return text
}

// burnStack overwrites the stack below its caller, where the hash may have left words of its input.
//
//go:noinline
func burnStack() {
	var dirt [4096]byte
	clear(dirt[:])
	keep(&dirt)
}

//go:noinline
func keep(*[4096]byte) {}
