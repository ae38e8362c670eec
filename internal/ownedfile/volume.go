package ownedfile

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// WithoutVolumes returns the openings without those of a folder that is a mount point of its own, belongs to root or our own
// user, and is open by its mode alone: kubelet makes an emptyDir like that. Who can write there is in the same pod. A
// folder below such a volume, or a plain folder, stays in the list. Where mount points cannot be read, all stay.
func WithoutVolumes(openings []Opening) []Opening {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return openings
	}
	return withoutVolumes(openings, string(mounts))
}

func withoutVolumes(openings []Opening, mountinfo string) []Opening {
	points := mountPoints(mountinfo)
	return slices.DeleteFunc(slices.Clone(openings), func(o Opening) bool {
		info, link, err := Lstat(o.Path)
		return err == nil && !link && !info.Regular && info.OwnerTrusted() && info.acl == aclNone && slices.Contains(points, o.Path)
	})
}

var octal = regexp.MustCompile(`\\[0-7]{3}`)

// mountPoints returns the paths that something is mounted on: the fifth field of each line, with blanks and backslashes as
// octal numbers (proc_pid_mountinfo(5)).
func mountPoints(mountinfo string) []string {
	var points []string
	for line := range strings.Lines(mountinfo) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, octal.ReplaceAllStringFunc(fields[4], func(code string) string {
				n, _ := strconv.ParseUint(code[1:], 8, 8) // a code above \\377 is no byte, and no path of ours
				return string([]byte{byte(n)})
			}))
		}
	}
	return points
}
