package evidence

import (
	"bytes"
	"slices"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// filter names the resource of an object and reports whether it is wanted. It is used by one goroutine: it remembers the
// last answer, because etcd's keys come by resource.
type filter struct {
	known     *stored.Resources
	resources []string // empty: all
	lastHead  []byte   // of the key, up to the path's second slash; nil: nothing is remembered
	last      stored.Place
	wanted    bool
}

func newFilter(known *stored.Resources, resources []string) filter {
	if known == nil {
		known = stored.Kubernetes()
	}
	return filter{known: known, resources: resources}
}

// of returns the resource. What is encrypted and cannot be attributed is wanted always: it may be what was asked for.
func (f *filter) of(o *Object) (place stored.Place, wanted bool) {
	head := head(o)
	if f.lastHead == nil || !bytes.Equal(head, f.lastHead) {
		f.last = f.known.Of(o.Key, o.Path)
		f.wanted = len(f.resources) == 0 || slices.ContainsFunc(f.resources, func(entry string) bool { return stored.Matches(entry, f.last.Resource) })
		f.lastHead = append(f.lastHead[:0], head...)
		if f.known.HasLayouts() { // theirs may be longer than two parts
			f.lastHead = nil
		}
	}
	return f.last, f.wanted || !f.last.Known && stored.IsEncrypted(o.Value)
}

// head is a key up to its path's second slash: all that its resource depends on. What follows does not matter, but that
// there is a slash does.
func head(o *Object) []byte {
	first := bytes.IndexByte(o.Path, '/')
	if first < 0 {
		return o.Key
	}
	second := bytes.IndexByte(o.Path[first+1:], '/')
	if second < 0 {
		return o.Key
	}
	return o.Key[:len(o.Key)-len(o.Path)+first+1+second+1]
}
