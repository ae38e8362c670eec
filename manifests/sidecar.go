package manifests

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// SidecarGroup is the group that the pod's volumes belong to.
func (v *Values) SidecarGroup() string { return cmp.Or(v.SocketGroup, "65532") }

// AuditDir is the folder of the trail; "": there is none.
func (v *Values) AuditDir() string {
	if v.AuditPath == "" {
		return ""
	}
	return filepath.Dir(v.AuditPath)
}

// HTTPOfPod reports whether kubelet can reach HTTPAddress at the pod's own address.
func (v *Values) HTTPOfPod() bool {
	host, _, err := net.SplitHostPort(v.HTTPAddress)
	if err != nil || v.HTTPPort() == "" {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// PINFolders are the folders with PIN files besides that of the configuration.
func (v *Values) PINFolders() []string {
	var folders []string
	for _, t := range v.withPIN() {
		if folder := filepath.Dir(t.PINFile); folder != v.ConfigDir() && !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	return folders
}

// PINs are the names of the PIN files in a folder.
func (v *Values) PINs(folder string) []string {
	var names []string
	for _, t := range v.withPIN() {
		if name := filepath.Base(t.PINFile); filepath.Dir(t.PINFile) == folder && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// checkSidecar puts the configuration where the pod has it, wherever it lies on this machine, and wants the opt-ins without
// which the plugin would not start there.
func (v *Values) checkSidecar() error {
	v.ConfigPath = "/etc/hsm-kms/config.yaml"
	if err := v.checkPod(); err != nil {
		return err
	}
	if !v.AllowPodVolumes {
		return hint.Wrap(errors.New("the socket's folder and stateDir of a sidecar are volumes of its pod, and the configuration does not allow that"),
			"set allowPodVolumes: true in the configuration of the sidecar, and in no other")
	}
	files := map[string]string{}
	for _, t := range v.withPIN() {
		if !t.AllowGroupPIN {
			return hint.Wrap(fmt.Errorf("token %s: a sidecar reads the PIN through a group, and the configuration does not allow that", t.Name),
				"set allowGroupPIN: true for this token in the configuration of the sidecar, and in no other")
		}
		name := filepath.Base(t.PINFile)
		if other, taken := files[name]; taken && other != t.PINFile {
			return hint.Wrap(fmt.Errorf("token %s: pinFile %s and %s would be one key of the Secret", t.Name, t.PINFile, other), "give the files different names")
		}
		files[name] = t.PINFile
	}
	return nil
}
