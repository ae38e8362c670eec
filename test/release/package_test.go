//go:build e2e

package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// checkPackage installs the deb in a Debian root of its own, uses what it installed, and removes it: its files go, and what is
// the operator's stays.
func checkPackage(t *testing.T, made map[string][]byte) {
	if os.Geteuid() != 0 {
		t.Skip("NOT CHECKED: a package is installed by root alone")
	}
	for _, program := range []string{"mmdebstrap", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("NOT CHECKED: the package is not installed anywhere: %v", err)
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", debianRoot(t), root).CombinedOutput(); err != nil {
		t.Fatalf("copying the Debian root: %v: %s", err, out)
	}
	for name, content := range made {
		if strings.HasSuffix(name, "_"+runtime.GOARCH+".deb") {
			if err := os.WriteFile(filepath.Join(root, "hsm-kms.deb"), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	inside := func(script string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "chroot", root, "sh", "-euc", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	inside("dpkg -i /hsm-kms.deb")
	if said := inside("hsm-kms --version && id -un hsm-kms && hsm-kms config example > /dev/null"); !strings.Contains(said, "hsm-kms version ") || !strings.Contains(said, "\nhsm-kms\n") {
		t.Errorf("after the installation: %s", said)
	}
	inside("systemd-analyze verify --man=no /usr/lib/systemd/system/hsm-kms.socket /usr/lib/systemd/system/hsm-kms.service")
	inside("test ! -e /etc/systemd/system/multi-user.target.wants/hsm-kms.service")
	inside("for f in /usr/share/man/man1/hsm-kms-serve.1.gz /usr/share/bash-completion/completions/hsm-kms /usr/share/doc/hsm-kms/copyright /usr/share/doc/hsm-kms/licenses/go/LICENSE; do test -s $f; done")
	inside("mkdir -p /etc/hsm-kms /var/lib/hsm-kms && touch /etc/hsm-kms/config.yaml /var/lib/hsm-kms/state")
	inside("dpkg -P hsm-kms")
	inside("test -e /etc/hsm-kms/config.yaml -a -e /var/lib/hsm-kms/state && id hsm-kms")
	if left := inside("find /usr -name '*hsm-kms*'"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// debianRoot is a small Debian with systemd, made once and kept in the cache of the tests.
func debianRoot(t *testing.T) string {
	t.Helper()
	cache, err := kubebin.CacheRoot()
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(cache, "debian-bookworm-systemd")
	if _, err := os.Stat(kept); err == nil {
		return kept
	}
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // nothing secret
		t.Fatal(err)
	}
	making, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(making) })
	out, err := exec.CommandContext(t.Context(), "mmdebstrap", "--mode=root", "--variant=essential", "--include=systemd,procps", "bookworm", making).CombinedOutput()
	if err != nil {
		t.Skipf("NOT CHECKED: the package is not installed anywhere: mmdebstrap: %v: %s", err, out)
	}
	if err := os.Rename(making, kept); err != nil {
		if _, statErr := os.Stat(kept); statErr != nil { // not made by another run meanwhile
			t.Fatal(err)
		}
	}
	return kept
}
