package audit

import (
	"path/filepath"
	"strings"
	"time"
)

// besideWait is how long a command waits for another run of itself to finish its records.
const besideWait = 10 * time.Second

// OpenBeside opens the trail of a command that uses or destroys a master key, beside the plugin's own at
// path, which has its one writer: /var/log/hsm-kms/audit.log and the name etcd-get give
// /var/log/hsm-kms/audit-etcd-get.log. It is required: such a command must not go on without a record. podVolume is that of Options.
func OpenBeside(path, name string, podVolume bool) (*Writer, error) {
	return Open(Options{Path: Beside(path, name), Required: true, PodVolume: podVolume, LockWait: besideWait})
}

// Beside is the path of that trail.
func Beside(path, name string) string {
	extension := filepath.Ext(path)
	return strings.TrimSuffix(path, extension) + "-" + name + extension
}
