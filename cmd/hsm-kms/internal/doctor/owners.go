package doctor

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// maxOwned bounds the files that are looked at: a token has a few per key.
const maxOwned = 10_000

// owners looks for files that the plugin keeps or its module keeps for it, and that the plugin's user cannot read: root made
// them. A key among them is never seen by the plugin, which stays healthy without it.
func (d *doctor) owners() {
	const check = "owners"
	uid, err := d.pluginUID()
	if err != nil || uid == 0 {
		return // root reads everything; a stateDir that cannot be looked at is a finding of its own
	}
	if owner, err := ownedfile.FolderOwner(d.cfg.StateDir); err != nil || owner != uid {
		return // doctor is not run as the plugin's user, whose files are nobody else's: that is a finding of state-dir
	}
	paths := []string{d.cfg.StateDir}
	if usesSoftHSM(d.cfg.AllTokens()) {
		paths = append(paths, softHSMTokens()...)
	}
	if d.cfg.Audit.Path != "" {
		paths = append(paths, d.cfg.Audit.Path)
	}
	slices.Sort(paths)
	bad := 0
	for _, path := range slices.Compact(paths) {
		closed := closedTo(uid, path)
		if len(closed) == 0 {
			continue
		}
		bad++
		detail := fmt.Sprintf("uid %d, the plugin's user, cannot read %s", uid, closed[0])
		if more := len(closed) - 1; more > 0 {
			detail += " and " + count(more, "file") + " more"
		}
		d.fail(check, "", detail, fmt.Sprintf("chown -R %s %s; run commands that open the token as the plugin's user: docs/install-systemd.md has hsm-kms-as-plugin", userName(uid), path))
	}
	if bad == 0 {
		d.pass(check, "", fmt.Sprintf("uid %d, the plugin's user, can read what it keeps: %s", uid, strings.Join(paths, ", ")))
	}
}

// MayMakeObjects refuses to let root make an object on a token whose module keeps it in files of root's own, where the plugin
// has another user: the plugin would never see it, and nothing would say so. The error has a hint.
func MayMakeObjects(cfg *config.Config) error {
	owner, err := ownedfile.FolderOwner(cfg.StateDir)
	if err != nil || os.Geteuid() != 0 || owner == 0 || !usesSoftHSM(cfg.Tokens) {
		return nil // a stateDir that cannot be looked at is an error of its own
	}
	return hint.Wrap(fmt.Errorf("stateDir belongs to %s, the plugin's user: what root makes on a SoftHSM token is in files that it cannot read", userName(owner)),
		"run this as the plugin's user: docs/install-systemd.md has hsm-kms-as-plugin")
}

func usesSoftHSM(tokens []config.Token) bool {
	return slices.ContainsFunc(tokens, func(t config.Token) bool { return strings.HasPrefix(filepath.Base(t.Module), "libsofthsm2") })
}

// pluginUID is the user that the plugin runs as: our own, or, for root, the owner of stateDir, which the plugin's service
// makes.
func (d *doctor) pluginUID() (uint32, error) {
	if uid := os.Geteuid(); uid != 0 {
		return uint32(uid), nil //nolint:gosec // a uid
	}
	return ownedfile.FolderOwner(d.cfg.StateDir)
}

// userName is the user's name, or the number where there is none.
func userName(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

// closedTo returns the files at and below root that a user cannot read by owner and mode. A group that may read counts as the
// user's: which groups a service has is not known here.
func closedTo(uid uint32, root string) []string {
	var closed []string
	seen := 0
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if seen++; seen > maxOwned {
			return fs.SkipAll
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil { // we cannot read the folder ourselves
			closed = append(closed, path)
			return nil
		}
		info, link, err := ownedfile.Lstat(path)
		if err != nil || link {
			return nil // it went away, or is nothing by itself
		}
		need := fs.FileMode(unix.R_OK)
		if entry.IsDir() {
			need |= unix.X_OK
		}
		mode := info.Perm | info.Perm>>3
		if info.UID == uid {
			mode = info.Perm >> 6
		}
		if mode&need != need {
			closed = append(closed, path)
		}
		return nil
	})
	return slices.Compact(closed)
}

// softHSMTokens are the folders in which SoftHSM keeps tokens, by its configuration (softhsm2.conf(5)).
func softHSMTokens() []string {
	file, err := os.Open(cmp.Or(os.Getenv("SOFTHSM2_CONF"), "/etc/softhsm/softhsm2.conf")) //nolint:gosec // the module reads the same
	if err != nil {
		return nil
	}
	defer file.Close()
	var folders []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if strings.TrimSpace(name) == "directories.tokendir" {
			folders = append(folders, filepath.Clean(strings.TrimSpace(value)))
		}
	}
	return folders
}
