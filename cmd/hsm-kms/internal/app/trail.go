package app

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// OpenTrailBeside opens the trail of a command, beside the plugin's: audit.path is set.
func OpenTrailBeside(cfg *config.Config, name string) (*audit.Writer, error) {
	if err := PrepareAuditFolder(cfg.Audit.Path); err != nil {
		return nil, err
	}
	return audit.OpenBeside(cfg.Audit.Path, name, cfg.AllowPodVolumes)
}

// PrepareAuditFolder makes the folder of the audit trail if it is missing.
func PrepareAuditFolder(path string) error {
	folder := filepath.Dir(path)
	if _, err := ownedfile.MakeFolder(folder, 0o700); err != nil {
		return hint.Wrap(fmt.Errorf("making the audit trail's folder: %w", err), cmp.Or(hint.Of(err), "make "+folder+" for the user that runs the plugin, or set audit.path"))
	}
	return nil
}

// Ourselves is this process, as the trail names peers. The executable is best effort.
func Ourselves() audit.Peer {
	executable, _ := os.Executable()
	return audit.Peer{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), Executable: executable} //nolint:gosec // both fit
}

// UserName is who runs the command, for people who read the trail.
func UserName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
