package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// operate looks at the identity of hsm-kms operate, where this machine has one.
func (d *doctor) operate(path string, now time.Time) {
	const check = "operate"
	const renew = "renew it and restart hsm-kms operate: docs/operate.md#renew-the-identity"
	file, info, err := ownedfile.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, fs.ErrPermission):
		d.pass(check, "", fmt.Sprintf("%s cannot be read by uid %d; root can check it", path, os.Geteuid()))
		return
	case err != nil:
		d.failure(check, "", err, "see what is at "+path)
		return
	}
	_ = file.Close()
	if info.Perm&0o077 != 0 || info.HasACL() {
		d.fail(check, "", fmt.Sprintf("%s has mode %#o, and its client key must be its owner's alone", path, info.Perm), "chmod 0600 "+path+", then renew the certificate: others may have its key")
		return
	}
	client, err := kubeapi.Open(kubeapi.Config{Kubeconfig: path})
	if err != nil {
		d.failure(check, "", err, "write it again: docs/operate.md#install")
		return
	}
	ends, err := client.Expires()
	switch at := ends.UTC().Format(time.RFC3339); {
	case err != nil:
		d.fail(check, "", fmt.Sprintf("%s: %v", path, err), "write it again: docs/operate.md#install")
	case ends.IsZero():
		d.pass(check, "", path+" has no client certificate")
	case !now.Before(ends):
		d.fail(check, "", fmt.Sprintf("the client certificate of %s ended at %s", path, at), renew)
	case ends.Sub(now) < kubeapi.EndsSoon:
		d.warn(check, "", fmt.Sprintf("the client certificate of %s ends at %s", path, at), renew)
	default:
		d.pass(check, "", fmt.Sprintf("the client certificate of %s ends at %s", path, at))
	}
}
