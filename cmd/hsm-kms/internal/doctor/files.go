package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/modulefile"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

func (d *doctor) stateDir() bool {
	const check = "state-dir"
	if err := d.Prepare(d.cfg); err != nil {
		d.failure(check, "", err, "make stateDir a folder that only the plugin's user can write")
		return false
	}
	if _, err := health.LoadProven(d.cfg.StateDir, d.cfg.KeyRing); err != nil {
		d.warn(check, "", err.Error(), "remove "+filepath.Join(d.cfg.StateDir, health.ProvenFile)+": the plugin writes it again at its next good probe")
		return true
	}
	who := "by its owner alone"
	if d.cfg.AllowPodVolumes {
		who = "by its owner and what mounts a volume of this pod"
	}
	d.pass(check, "", d.cfg.StateDir+" can be written, "+who)
	return true
}

// audit looks whether the trail could be written; it does not try.
func (d *doctor) audit() {
	const check = "audit"
	path := d.cfg.Audit.Path
	if path == "" {
		return // the configuration's own warning says so
	}
	folder := filepath.Dir(path)
	info, err := os.Stat(folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.pass(check, "", folder+" is not there yet; serve makes it")
	case err != nil:
		d.failure(check, "", err, "let the plugin's user enter "+folder+", or set audit.path")
	case !info.IsDir():
		d.fail(check, "", folder+" is not a folder", "move it away, or set audit.path")
	case unix.Access(folder, unix.W_OK|unix.X_OK) != nil:
		d.fail(check, "", "uid "+fmt.Sprint(os.Geteuid())+" may not write to "+folder, "let the plugin's user own "+folder+", or set audit.path")
	default:
		d.auditFile(check, path)
	}
}

func (d *doctor) auditFile(check, path string) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		d.pass(check, "", path+" can be made")
	case err != nil:
		d.failure(check, "", err, "see what is at "+path)
	case !info.Mode().IsRegular():
		d.fail(check, "", path+" is not a regular file", "move it away, or set audit.path")
	case unix.Access(path, unix.W_OK) != nil:
		d.fail(check, "", fmt.Sprintf("uid %d may not write %s", os.Geteuid(), path), "let the plugin's user own "+path)
	default:
		d.pass(check, "", path+" can be written; check it with: hsm-kms audit verify "+path)
	}
}

// socketFolder reports whether there may be a plugin's socket at all.
func (d *doctor) socketFolder() bool {
	const check = "socket-folder"
	path := d.cfg.Socket.Path
	folder := filepath.Dir(path)
	if _, _, err := d.cfg.Socket.GID(); err != nil {
		d.failure(check, "", err, "name a group of this machine in socket.group")
		return false
	}
	if _, err := os.Lstat(folder); errors.Is(err, fs.ErrNotExist) {
		d.pass(check, "", folder+" is not there yet; serve makes it")
		return true
	}
	if err := socket.CheckFolder(folder, d.cfg.AllowPodVolumes); err != nil {
		d.failure(check, "", err, "make "+folder+" a folder that root or the plugin's user owns, mode 0755")
		return false
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		d.fail(check, "", path+" is there, and is not a socket", "move it away, or give another socket.path")
		return false
	}
	// Root judges by the file: before the plugin has made it, its owner is not known.
	if _, _, err := ownedfile.Lstat(path); err == nil || os.Geteuid() != 0 {
		if uids := d.cfg.Socket.ShutOut(ownedfile.Lstat); len(uids) > 0 {
			d.warn(check, "", fmt.Sprintf("the owner and mode of %s keep allowed peers out: uids %v", path, uids), config.ShutOutHint)
			return true
		}
	}
	if !slices.Contains(d.cfg.Socket.UIDs(), 0) && d.cfg.Socket.Group == "" {
		d.warn(check, "", "socket.allowedUIDs has no 0: a kube-apiserver that runs as root, as kubeadm's does, is refused",
			"add 0 to socket.allowedUIDs unless your kube-apiserver runs as another user")
		return true
	}
	who := "only root and the plugin's user"
	if d.cfg.AllowPodVolumes {
		who = "only root, the plugin's user and the containers that mount a volume of this pod"
	}
	d.pass(check, "", who+" can replace what is in "+folder)
	return true
}

// files checks what lies on disk for each token, and gives the indices of those that are in order.
func (d *doctor) files() []int {
	var fit []int
	for i, t := range d.tokens {
		moduleFits, pinFits := d.moduleFile(t), d.pinFile(t)
		if moduleFits && pinFits {
			fit = append(fit, i)
		}
	}
	return fit
}

func (d *doctor) moduleFile(t hsm.TokenConfig) bool {
	if _, err := modulefile.Check(t.Module, d.cfg.AllowUnsafeModulePath); err != nil {
		for _, one := range split(err) {
			d.failure("module", t.Name, one, "install the vendor's PKCS#11 library and point module at it")
		}
		return false
	}
	d.pass("module", t.Name, t.Module+" is a library for this machine, and only root and our own user can change it")
	return true
}

// pinFile judges what can be judged without reading the PIN. The token's worker reads it, for inspect.
func (d *doctor) pinFile(t hsm.TokenConfig) bool {
	const check = "pin-file"
	if t.Login != hsm.LoginPIN {
		d.pass(check, t.Name, "the configuration names none: the token needs no login, or asks for the PIN itself")
		return true
	}
	file, err := pinfile.Stat(t.PINFile, t.PINRules)
	if err != nil {
		d.failure(check, t.Name, err, "put the token's user PIN there, owner root, mode 0400")
		return false
	}
	d.pass(check, t.Name, file.Path+" is closed to others")
	return true
}

// httpAddress tries to listen where nobody should yet. It is made when no plugin runs.
func (d *doctor) httpAddress(ctx context.Context) {
	const check = "http"
	address := d.cfg.HTTP.Address
	if address == "" {
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		d.warn(check, "", fmt.Sprintf("listening on http.address: %v; serve tries again until it can", err), "find out who listens there (ss -ltnp), or set http.address")
		return
	}
	_ = l.Close() // nothing was written
	d.pass(check, "", address+" is free for metrics and health")
}
