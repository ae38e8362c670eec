package evidence

import (
	"bytes"
	"slices"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// filter names the resource of an object and tells whether it is wanted. It is used by one goroutine: it remembers the
// last answer, because etcd's keys come by resource.
type filter struct {
	known     *stored.Resources
	resources []string // empty: all
	lastPath  []byte   // up to the second slash
	last      string
	wanted    bool
}

func newFilter(resources []string) filter {
	return filter{known: stored.NewResources(), resources: resources}
}

func (f *filter) of(path []byte) (resource string, wanted bool) {
	head := head(path)
	if f.lastPath != nil && bytes.Equal(head, f.lastPath) {
		return f.last, f.wanted
	}
	f.lastPath = append(f.lastPath[:0], head...)
	f.last = f.known.Of(path)
	f.wanted = len(f.resources) == 0 || slices.ContainsFunc(f.resources, func(entry string) bool {
		return f.known.Matches(entry, f.last)
	})
	return f.last, f.wanted
}

// head is a path's first two parts: all that its resource depends on. What follows a second part's slash does not
// matter, but that there is one does.
func head(path []byte) []byte {
	first := bytes.IndexByte(path, '/')
	if first < 0 {
		return path
	}
	second := bytes.IndexByte(path[first+1:], '/')
	if second < 0 {
		return path
	}
	return path[:first+1+second+1]
}
