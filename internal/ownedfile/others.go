package ownedfile

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxLinks is Linux's own limit for one path; more is a loop.
const maxLinks = 40

// Opening is a place where somebody other than root and our own user can change what is at a path.
type Opening struct {
	Path  string // the file, a folder on the way to it, or a link
	Above bool   // it is not what the path names, but lies on the way
	What  string // such as "/opt/x belongs to uid 1000"
	Fix   string // the command that closes it
}

// Others returns every opening at path: its owner and mode, its access control list, and those of every folder and link
// that the system goes through to get there. It also returns the path without links. Root, our own user and those in
// trusted count as ourselves, and group root counts as root. The sticky bit excuses a folder higher up, as /tmp is, but
// not the folder of a file, nor the folder that path names itself. What is at path must exist; errors are those of lstat
// and readlink.
func Others(path string, trusted ...uint32) (openings []Opening, real string, err error) {
	r, err := follow(path)
	if err != nil {
		return nil, "", err
	}
	end := r.steps[len(r.steps)-1]
	for _, s := range r.steps {
		o := Opening{Path: s.path, Above: s.path != end.path}
		close := s.path == end.path || end.info.Regular && s.path == filepath.Dir(end.path)
		switch {
		case !s.info.OwnerTrusted() && !slices.Contains(trusted, s.info.UID):
			o.What = fmt.Sprintf("%s belongs to uid %d", s.path, s.info.UID)
			o.Fix = "chown root " + s.path
			if s.link {
				o.Fix = "chown -h root " + s.path
			}
		case s.link || !s.info.OthersMayWrite() || s.info.Sticky() && !close: // a link's mode means nothing
			continue
		case s.info.acl == aclWriters:
			o.What = fmt.Sprintf("others may write to %s (its access control list, mode %04o)", s.path, s.info.Perm)
			o.Fix = "setfacl -b " + s.path
		default:
			o.What = fmt.Sprintf("others may write to %s (mode %04o, group %d)", s.path, s.info.Perm, s.info.GID)
			o.Fix = "chmod go-w " + s.path
		}
		openings = append(openings, o)
	}
	return openings, end.path, nil
}

// step is one folder in which a name was looked up, one link that was followed, or the end.
type step struct {
	path string
	info Info
	link bool
}

// route is how the system gets from a path to what it names. Each step is a place where the way could be changed, which
// is why filepath.EvalSymlinks, which gives only the end, is not enough.
type route struct {
	steps []step // every folder and link, each once; then the end, which is no link
}

func (r *route) note(path string, info Info, link bool) {
	if !slices.ContainsFunc(r.steps, func(s step) bool { return s.path == path }) {
		r.steps = append(r.steps, step{path, info, link})
	}
}

// follow walks the absolute path as the kernel would, one name at a time.
func follow(path string) (*route, error) {
	r := &route{}
	here, rest, links := "/", names(path), 0
	for len(rest) > 0 {
		folder, _, err := Lstat(here)
		if err != nil {
			return nil, err
		}
		r.note(here, folder, false)
		next := filepath.Join(here, rest[0]) // ".." is right too: here holds no links
		rest = rest[1:]
		info, link, err := Lstat(next)
		if err != nil {
			return nil, err
		}
		if !link {
			here = next
			continue
		}
		r.note(next, info, true)
		if links++; links > maxLinks {
			return nil, fmt.Errorf("more than %d links", maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return nil, err
		}
		rest = append(names(target), rest...)
		if filepath.IsAbs(target) {
			here = "/"
		}
	}
	end, _, err := Lstat(here)
	if err != nil {
		return nil, err
	}
	r.steps = slices.DeleteFunc(r.steps, func(s step) bool { return s.path == here }) // a path may come by its own end
	r.note(here, end, false)
	return r, nil
}

// names returns the names in a path, without empty ones and ".".
func names(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}
