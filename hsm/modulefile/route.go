package modulefile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// maxLinks is Linux's own limit for one path; more is a loop.
const maxLinks = 40

// step is one folder in which a name was looked up, or one link that was followed.
type step struct {
	path string
	info ownedfile.Info
	link bool
}

// route is how the system gets from a path to a file. Each step is a place where the way could be changed, which is
// why filepath.EvalSymlinks, which gives only the end, is not enough.
type route struct {
	steps []step // every folder and link on the way, each once
	file  string // the last name, no link any more
}

// follow walks the absolute path as the kernel would, one name at a time, and notes every folder and link it needs.
// The file at the end must exist. Errors are those of lstat and readlink.
func follow(path string) (route, error) {
	var (
		r     route
		seen  = map[string]bool{}
		here  = "/"
		rest  = split(path)
		links int
	)
	note := func(path string, info ownedfile.Info, link bool) {
		if !seen[path] {
			seen[path] = true
			r.steps = append(r.steps, step{path, info, link})
		}
	}
	for len(rest) > 0 {
		folder, _, err := ownedfile.Lstat(here)
		if err != nil {
			return route{}, err
		}
		note(here, folder, false)
		next := filepath.Join(here, rest[0]) // ".." is right too: here holds no links
		rest = rest[1:]
		info, link, err := ownedfile.Lstat(next)
		if err != nil {
			return route{}, err
		}
		if !link {
			here = next
			continue
		}
		note(next, info, true)
		if links++; links > maxLinks {
			return route{}, fmt.Errorf("more than %d links", maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return route{}, err
		}
		rest = append(split(target), rest...)
		if filepath.IsAbs(target) {
			here = "/"
		}
	}
	r.file = here
	return r, nil
}

// split returns the names in a path, without empty ones and ".".
func split(path string) []string {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}
