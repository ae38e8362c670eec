package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// etcd's words: the lowest key, and, as the end of a range, that there is none.
const (
	lowest    = "\x00"
	unbounded = "\x00"
)

// maxSpans bounds the ranges that a reading is made of: prefixes, what lies between them, and the ranges of a role.
const maxSpans = 1000

// keyRange is [start, end) of etcd's keys; end empty: there is none.
type keyRange struct{ start, end string }

func (r keyRange) text() string {
	start := r.start
	if start == lowest {
		start = ""
	}
	return evidence.RangeText(start, r.end)
}

// wireEnd is the end in etcd's words.
func (r keyRange) wireEnd() string {
	if r.end == "" {
		return unbounded
	}
	return r.end
}

func (r keyRange) contains(key string) bool { return key >= r.start && (r.end == "" || key < r.end) }

// within is the part of r that is inside other.
func (r keyRange) within(other keyRange) (part keyRange, some bool) {
	part = keyRange{max(r.start, other.start), r.end}
	if part.end == "" || other.end != "" && other.end < part.end {
		part.end = other.end
	}
	return part, part.end == "" || part.start < part.end
}

// without are the parts of r that are in none of the others, which are in order and do not overlap.
func (r keyRange) without(others []keyRange) (rest []keyRange) {
	from := r.start
	for _, other := range others {
		if part, some := r.within(other); some {
			if from < part.start {
				rest = append(rest, keyRange{from, part.start})
			}
			if part.end == r.end {
				return rest
			}
			from = part.end
		}
	}
	return append(rest, keyRange{from, r.end})
}

// disjoint puts ranges in order, and takes away from each what one before it has.
func disjoint(ranges []keyRange) (apart []keyRange) {
	slices.SortFunc(ranges, func(a, b keyRange) int { return strings.Compare(a.start, b.start) })
	for _, r := range ranges {
		if n := len(apart); n > 0 {
			if apart[n-1].end == "" {
				break
			}
			r.start = max(r.start, apart[n-1].end)
		}
		if r.end == "" || r.start < r.end {
			apart = append(apart, r)
		}
	}
	return apart
}

// span is a range that is read.
type span struct {
	keyRange
	ours  bool  // below a prefix
	count int64 // of its keys, when etcd was asked first
}

// layout divides all keys of etcd into what lies below the prefixes and what does not, in order of keys.
func layout(prefixes []string) []span {
	var below []keyRange
	for _, prefix := range prefixes {
		below = append(below, keyRange{prefix + "/", prefix + "0"}) // "0" follows "/"
	}
	below = disjoint(below)
	var spans []span
	for _, r := range below {
		spans = append(spans, span{keyRange: r, ours: true})
	}
	for _, r := range (keyRange{lowest, ""}).without(below) {
		spans = append(spans, span{keyRange: r})
	}
	slices.SortFunc(spans, func(a, b span) int { return strings.Compare(a.start, b.start) })
	return spans
}

// access finds out which parts of all keys this client may read, and counts the keys there. What etcd refuses goes to
// unreadable. The error is etcd's; that nothing at all below the prefixes may be read is one.
func (r *reader) access(ctx context.Context) error {
	var permitted []keyRange
	var refused error
	for _, s := range layout(r.etcd.cfg.Prefixes) {
		if r.way == evidence.Loose && !s.ours {
			continue
		}
		err := r.count(ctx, &s)
		if err == nil {
			r.spans = append(r.spans, s)
			continue
		}
		if !errors.Is(err, rpctypes.ErrPermissionDenied) {
			return err
		}
		if refused == nil {
			refused, permitted = err, r.etcd.permitted(ctx)
		}
		if err := r.accessParts(ctx, s, permitted); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(r.spans, func(s span) bool { return s.ours }) {
		return refused
	}
	if len(r.spans) > maxSpans {
		return fmt.Errorf("the roles of this client of etcd have more than %d ranges", maxSpans)
	}
	return nil
}

// accessParts does what access does, for a span that may not be read as a whole.
func (r *reader) accessParts(ctx context.Context, s span, permitted []keyRange) error {
	var readable []keyRange
	for _, allowed := range permitted {
		part, some := s.within(allowed)
		if !some {
			continue
		}
		one := span{keyRange: part, ours: s.ours}
		switch err := r.count(ctx, &one); {
		case err == nil:
			r.spans, readable = append(r.spans, one), append(readable, part)
		case !errors.Is(err, rpctypes.ErrPermissionDenied):
			return err
		}
	}
	for _, hidden := range s.without(readable) {
		if last := len(r.unreadable) - 1; last >= 0 && r.unreadable[last].end == hidden.start {
			r.unreadable[last].end = hidden.end // it goes on across the border of a prefix
			continue
		}
		r.unreadable = append(r.unreadable, hidden)
	}
	return nil
}

// count asks how many keys a span has, and whether it may be read.
func (r *reader) count(ctx context.Context, s *span) error {
	resp, err := r.get(ctx, s.start, clientv3.WithRange(s.wireEnd()), clientv3.WithCountOnly(), clientv3.WithRev(r.pinned))
	if err != nil {
		return err
	}
	if r.way == evidence.Pinned && r.pinned == 0 {
		r.pinned = resp.Header.GetRevision()
	}
	switch s.count = resp.Count; {
	case s.count < 0:
		return r.etcd.broken("it counts %d keys", s.count)
	case s.count > maxObjects:
		return errTooMany()
	}
	if s.ours {
		r.total += s.count
	}
	return nil
}

// permitted are the ranges that the roles of this client's user let it read, in order. Where etcd does not say, there are
// none: the reading then names the whole span as unreadable.
func (e *Etcd) permitted(ctx context.Context) []keyRange {
	if e.user == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	user, err := e.client.UserGet(ctx, e.user)
	if err != nil || len(user.Roles) > maxSpans {
		return nil
	}
	var ranges []keyRange
	for _, name := range user.Roles {
		role, err := e.client.RoleGet(ctx, name)
		if err != nil || len(ranges)+len(role.Perm) > maxSpans {
			return nil
		}
		for _, perm := range role.Perm {
			if perm.PermType == authpb.Permission_WRITE {
				continue
			}
			r := keyRange{max(string(perm.Key), lowest), string(perm.RangeEnd)}
			switch r.end {
			case "": // one key
				r.end = r.start + "\x00"
			case unbounded:
				r.end = ""
			}
			ranges = append(ranges, r)
		}
	}
	return disjoint(ranges)
}
