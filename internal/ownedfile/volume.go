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
// folder below such a volume, or a plain folder, stays in the list.
func WithoutVolumes(openings []Opening) []Opening {
	return slices.DeleteFunc(slices.Clone(openings), func(o Opening) bool { return IsVolume(o.Path) })
}

// IsVolume reports whether the folder at path is a mount point, belongs to root or our own user, and has no access control
// list. Where mount points cannot be read it is none.
func IsVolume(path string) bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && isVolume(path, string(mounts))
}

func isVolume(path, mountinfo string) bool {
	info, link, err := Lstat(path)
	return err == nil && !link && !info.Regular && info.OwnerTrusted() && info.acl == aclNone && slices.Contains(mountPoints(mountinfo), path)
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
