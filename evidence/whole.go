package evidence

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ErrNotWhole: the objects that a Read gave are not one state of the source. Another Read may succeed.
var ErrNotWhole = errors.New("the reading is not whole")

// wholeTries is how often a source is read with corrections before it is given up.
const wholeTries = 3

// ReadWhole reads a source so that the objects are its state at one revision, Reading.Revision. begin is called before each
// try, and returns what takes the pages of that try; what it took in an earlier one counts for nothing. corrected: objects
// may be given again, as Object.Corrects says. Nothing that was not read whole may be taken for evidence: the error wraps
// ErrNotWhole when all tries failed, or is the source's.
func ReadWhole(ctx context.Context, source Source, begin func(corrected bool) (each func(page []Object) error)) (Reading, error) {
	way := Pinned
	for try := 0; ; try++ {
		reading, err := source.Read(ctx, way, begin(way == Followed))
		if !errors.Is(err, ErrNotWhole) || ctx.Err() != nil {
			return reading, err
		}
		if try == wholeTries {
			return Reading{}, hint.Wrap(fmt.Errorf("after %d tries: %w", wholeTries, err),
				"nothing is known of what etcd holds: run it again when less is written and compacted, or read a snapshot (etcdctl snapshot save FILE) with --snapshot")
		}
		way = Followed
	}
}

// keyHash stands for a key of etcd: two keys with one hash would be a break of SHA-256.
type keyHash [16]byte

func hashOf(key []byte) keyHash {
	sum := sha256.Sum256(key)
	return keyHash(sum[:])
}

// Ledger counts objects, and can take out again what a correction replaces: it remembers which count each key is in. Nil:
// nothing will be corrected, and nothing is remembered. It is used by one goroutine at a time.
type Ledger map[keyHash]*int64

// NewLedger returns one for a try of ReadWhole.
func NewLedger(corrected bool) Ledger {
	if !corrected {
		return nil
	}
	return Ledger{}
}

// Put counts the object in a count, and no longer where it was counted before. count nil: it is counted nowhere.
func (l Ledger) Put(o *Object, count *int64) {
	if l != nil {
		hash := hashOf(o.Key)
		if before := l[hash]; before != nil {
			*before--
		}
		if l[hash] = count; count == nil {
			delete(l, hash)
		}
	}
	if count != nil {
		*count++
	}
}

// withoutCorrected drops the problems of objects that the page corrects.
func withoutCorrected(problems []Problem, page []Object) []Problem {
	if len(problems) == 0 || len(page) == 0 || !page[0].Corrects {
		return problems
	}
	corrected := make(map[string]bool, len(page))
	for i := range page {
		corrected[string(page[i].Key)] = true
	}
	kept := problems[:0]
	for _, p := range problems {
		if p.Past || !corrected[p.Key] {
			kept = append(kept, p)
		}
	}
	return kept
}
