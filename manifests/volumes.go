package manifests

import (
	"fmt"
	"path/filepath"
	"slices"
)

// Volume is a folder or file of the host that the pod sees at the same path.
type Volume struct {
	Name, Path string
	Type       string // hostPath type: Directory, DirectoryOrCreate, File
	ReadOnly   bool
}

// Volumes are what the pod needs of the host: the configuration, PINs and modules to read; the socket's folder, the
// state and the trail to write. A folder is mounted and not the file in it where the file may be replaced by renaming
// another over it (PIN, configuration) or made again (socket): a mounted file would stay the old one.
func (v *Values) Volumes() []Volume {
	var all []Volume
	add := func(kind, path, hostType string, readOnly bool) {
		at := slices.IndexFunc(all, func(o Volume) bool { return o.Path == path })
		if at >= 0 {
			all[at].ReadOnly = all[at].ReadOnly && readOnly
			return
		}
		n := 0
		for _, o := range all {
			if o.Name == kind || o.Name == fmt.Sprintf("%s-%d", kind, n+1) {
				n++
			}
		}
		name := kind
		if n > 0 {
			name = fmt.Sprintf("%s-%d", kind, n+1)
		}
		all = append(all, Volume{Name: name, Path: path, Type: hostType, ReadOnly: readOnly})
	}
	add("config", v.ConfigDir(), "Directory", true)
	for _, t := range v.withPIN() {
		add("pin", filepath.Dir(t.PINFile), "Directory", true)
	}
	for _, t := range v.Tokens {
		if folder := filepath.Dir(t.Module); systemFolder(folder) {
			add("module", t.Module, "File", true)
		} else {
			add("module", folder, "Directory", true)
			for _, link := range t.Links { // a link that leads out of its folder leads nowhere in the pod
				if folder := filepath.Dir(link); systemFolder(folder) {
					add("module", link, "File", true)
				} else {
					add("module", folder, "Directory", true)
				}
			}
		}
	}
	if v.SoftHSM() {
		add("softhsm-config", "/etc/softhsm", "Directory", true)
		add("softhsm-tokens", "/var/lib/softhsm/tokens", "Directory", false)
	}
	add("socket", v.SocketDir(), "DirectoryOrCreate", false)
	add("state", v.StateDir, "DirectoryOrCreate", false)
	if v.AuditPath != "" {
		add("audit", filepath.Dir(v.AuditPath), "DirectoryOrCreate", false)
	}
	return all
}

// systemFolder reports whether the image needs its own files in this folder: with the host's mounted over it, nothing would start.
func systemFolder(folder string) bool {
	switch folder {
	case "/", "/lib", "/lib64", "/usr", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt", "/etc",
		"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu":
		return true
	}
	return false
}
