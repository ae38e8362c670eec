package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
)

// maxLine bounds a line in bytes, newline excluded. What is longer is no record. The longest that Record can
// give, with every byte escaped, is below half of it.
const maxLine = 16 << 10

const (
	hashSize     = 2 * sha256.Size // in hex digits
	previousMark = `,"previous":"`
	hashMark     = `,"hash":"`
	hashedEnd    = len(hashMark) + hashSize + len(`"}`)
)

// digest is a SHA-256 value in lower-case hex.
type digest [hashSize]byte

func digestOf(data []byte) digest {
	sum := sha256.Sum256(data)
	var d digest
	hex.Encode(d[:], sum[:])
	return d
}

// noRecord is what the first record of a chain links to.
func noRecord() digest {
	var d digest
	for i := range d {
		d[i] = '0'
	}
	return d
}

// link ends the line that begins at b[start:] with the hash of the record before and its own, which it also
// returns.
func link(b []byte, start int, previous digest) ([]byte, digest) {
	b = append(b, previousMark...)
	b = append(b, previous[:]...)
	b = append(b, '"')
	own := digestOf(b[start:])
	b = append(b, hashMark...)
	b = append(b, own[:]...)
	return append(b, `"}`...), own
}

// parsed is what the chain needs of a record.
type parsed struct {
	Sequence  uint64 `json:"sequence"`
	Operation string `json:"operation"`
	Previous  string `json:"previous"`
	Opens     bool   `json:"opens"`
	Lost      uint64 `json:"lost"`
	Torn      *span  `json:"torn"`
	hash      digest
}

// parseLine reads a line without its newline. ok is false unless it is a whole record whose bytes have the
// hash that it says.
func parseLine(line []byte) (p parsed, ok bool) {
	end := len(line) - hashedEnd
	if end <= 0 || len(line) > maxLine || line[0] != '{' {
		return parsed{}, false
	}
	own := digestOf(line[:end])
	if !bytes.HasPrefix(line[end:], []byte(hashMark)) || !bytes.Equal(line[end+len(hashMark):len(line)-2], own[:]) {
		return parsed{}, false
	}
	if json.Unmarshal(line, &p) != nil || p.Sequence == 0 || p.Operation == "" || len(p.Previous) != hashSize {
		return parsed{}, false
	}
	p.hash = own
	return p, true
}

// tornBytes collects what stands between the last good record and the next one, line by line.
type tornBytes struct {
	hash  hash.Hash
	bytes int64
}

func newTorn(first []byte) *tornBytes {
	t := &tornBytes{hash: sha256.New()}
	t.add(first)
	return t
}

// add goes on with the line at hand.
func (t *tornBytes) add(data []byte) {
	t.hash.Write(data) // never fails
	t.bytes += int64(len(data))
}

// nextLine ends the line at hand: its newline counts as soon as another line follows it.
func (t *tornBytes) nextLine() { t.add([]byte{'\n'}) }

// span is what a recovery record says of it; nil for nil.
func (t *tornBytes) span() *span {
	if t == nil {
		return nil
	}
	return &span{Bytes: t.bytes, SHA256: hex.EncodeToString(t.hash.Sum(nil))}
}
