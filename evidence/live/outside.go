package live

import (
	"context"
	"errors"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
)

// outside is what was seen beside the prefixes: a prefix that was forgotten, or an API server that nobody thought of,
// must not look as if there were nothing.
type outside struct {
	elsewhere int64
	hidden    []string // refused to this client
}

// etcd's words: the lowest key, and, as the end of a range, that there is none.
const first, unbounded = "\x00", "\x00"

// text is the range, from a key on, as a report names it.
func (r keyRange) text(from string) string {
	end := r.end
	if from == first {
		from = ""
	}
	if end == unbounded {
		end = ""
	}
	return evidence.RangeText(from, end)
}

// gapsOf are all keys of etcd that are in none of the ranges.
func gapsOf(ranges []keyRange) []keyRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b keyRange) int { return strings.Compare(a.start, b.start) })
	gaps, from := []keyRange(nil), first
	for _, r := range sorted {
		if from < r.start {
			gaps = append(gaps, keyRange{from, r.start})
		}
		from = max(from, r.end)
	}
	return append(gaps, keyRange{from, unbounded})
}

// look reads beside the prefixes as it is now, and counts what an API server has encrypted. A client that may not read
// there is no error.
func (r *reader) look(ctx context.Context) error {
	r.limit = firstPage // what other programs keep there may weigh anything
	for _, gap := range gapsOf(r.etcd.ranges) {
		for next := gap.start; next != ""; {
			page, after, err := r.page(ctx, next, gap.end)
			if errors.Is(err, rpctypes.ErrPermissionDenied) {
				r.hidden = append(r.hidden, gap.text(next))
				break
			}
			if err != nil {
				return err
			}
			for _, kv := range page {
				if stored.IsEncrypted(kv.GetValue()) {
					r.elsewhere++
				}
			}
			next = after
		}
	}
	return nil
}

func (o *outside) notes() []string {
	var notes []string
	if o.elsewhere > 0 {
		notes = append(notes, evidence.ElsewhereNote(o.elsewhere, "in this etcd"))
	}
	if len(o.hidden) > 0 {
		notes = append(notes, "this client of etcd may not read all keys: whether an API server with another --etcd-prefix keeps something there was not seen")
	}
	return notes
}
