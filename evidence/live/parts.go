package live

import (
	"context"
	"slices"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/evidence"
)

const (
	// maxStreams is how many pages of etcd are asked for at once: while one is decoded, etcd makes another.
	maxStreams = 2
	// farSight is how many objects may follow in a range that a page is asked for of: etcd counts them all for each page.
	farSight = 32_768
	// maxJoin bounds how many parts are taken at once, maxParted how many wait, and maxCutKey, in bytes, what they are cut at: of
	// a key of Kubernetes, each part has a name and a namespace at most.
	maxJoin   = 64
	maxParted = 4096
	maxCutKey = 1024
)

// parts is what no stream reads yet of a span: ranges that do not overlap, in order. What a stream takes and what it puts back
// make the same range, so whatever the cuts are, each key is in one part.
type parts struct {
	mu    sync.Mutex // guards the fields below
	moved *sync.Cond // any of them changed
	rest  []keyRange
	busy  int   // streams that have a part, of which they may put back something
	join  int   // how many neighbours are taken at once: more after a short part, one after a long one
	err   error // the first
}

func newParts(all keyRange) *parts {
	p := &parts{rest: []keyRange{all}, join: 1}
	p.moved = sync.NewCond(&p.mu)
	return p
}

// take gives the lowest part, and waits while there may be one yet.
func (p *parts) take() (at keyRange, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.rest) == 0 && p.busy > 0 && p.err == nil {
		p.moved.Wait()
	}
	if len(p.rest) == 0 || p.err != nil {
		return keyRange{}, false
	}
	at = p.rest[0]
	n := 1
	for n < p.join && n < len(p.rest) && p.rest[n].start == at.end {
		at.end = p.rest[n].end
		n++
	}
	p.rest = p.rest[n:]
	p.busy++
	return at, true
}

// cut puts back what follows the first of a range's parts, and returns the first.
func (p *parts) cut(cuts []keyRange) keyRange {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.rest)+len(cuts) > maxParted {
		return keyRange{cuts[0].start, cuts[len(cuts)-1].end}
	}
	i, _ := slices.BinarySearchFunc(p.rest, cuts[0].start, func(r keyRange, start string) int { return strings.Compare(r.start, start) })
	p.rest = slices.Insert(p.rest, i, cuts[1:]...)
	p.join = 1
	p.moved.Broadcast()
	return cuts[0]
}

// done ends what take began. short: the part was hardly worth a question.
func (p *parts) done(short bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	if short {
		p.join = min(2*p.join, maxJoin)
	}
	if p.err == nil {
		p.err = err
	}
	p.moved.Broadcast()
}

// cuts divides what follows a page in a range. first and last are the page's first and last key. The keys of a page have a
// beginning in common, and where those end that have it too, there is a good place: about as many as a page has lie before
// it. So are, further on, the ends of those that have less of it in common. r.start is behind last and before all of them.
func (r keyRange) cuts(first, last string) (parts []keyRange) {
	common := 0
	for common < min(len(first), len(last)) && first[common] == last[common] {
		common++
	}
	for ; common > 0 && len(last) <= maxCutKey; common-- {
		at := clientv3.GetPrefixRangeEnd(last[:common])
		if at == unbounded || r.end != "" && at >= r.end {
			break
		}
		if at > r.start {
			parts = append(parts, keyRange{r.start, at})
			r.start = at
		}
	}
	return append(parts, r)
}

// stream reads parts of a span. It is used by one goroutine.
type stream struct {
	reader *reader
	span   *span
	parts  *parts
	limit  int64 // objects of the next page
}

// streams is how many read a span. What is no etcd does not count, and takes ranges that are no prefix for something else (kine).
func (r *reader) streams(s *span) int {
	if r.cuts() && s.count > r.etcd.farSight {
		return maxStreams
	}
	return 1
}

// cuts reports whether spans are read in parts. Work that proves nothing reads in order.
func (r *reader) cuts() bool { return r.countsKeys() && r.way != evidence.Loose }

// run reads parts until there are no more.
func (s *stream) run(ctx context.Context) error {
	for {
		at, ok := s.parts.take()
		if !ok {
			return nil
		}
		read, err := s.part(ctx, at)
		s.parts.done(read < s.limit, err)
		if err != nil {
			return err
		}
	}
}

// part reads a range, but for what it puts back, and returns how many objects it has.
func (s *stream) part(ctx context.Context, at keyRange) (read int64, err error) {
	for {
		page, err := s.page(ctx, at)
		if err != nil {
			return read, err
		}
		if err := s.reader.take(s.span, page.kvs); err != nil {
			return read, err
		}
		read += int64(len(page.kvs))
		if at.start = page.after; page.after != "" && page.left > s.reader.etcd.farSight && s.reader.cuts() {
			first, last := page.kvs[0].GetKey(), page.kvs[len(page.kvs)-1].GetKey()
			at = s.parts.cut(at.cuts(string(first), string(last)))
		}
		if s.span.ours {
			err = s.reader.send(page.kvs)
		} else {
			s.reader.countOutside(page.kvs)
		}
		if err != nil || page.after == "" {
			return read, err
		}
	}
}
