package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// A disk that is full leaves no part of an object that could pass for the whole.
func TestObjectThatDoesNotFit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "object")
	if err := writeNew(path, make([]byte, 64<<10)); !errors.Is(err, unix.ENOSPC) || !strings.Contains(hint.Of(err), "df -h") {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a part of the object is there")
	}
}

// A key that root makes on a SoftHSM token is in files of root's, which the service does not see: no key is made.
func TestRootMakesNoKeyOnTheSoftHSMOfTheService(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("two users need root")
	}
	token, dir := softhsm.ForTest(t, "k8s"), t.TempDir()
	state, path := filepath.Join(dir, "state"), filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf("apiVersion: hsm-kms/v1\nkind: PluginConfiguration\nkeyRing: kube-secrets\nstateDir: %q\nsocket: {path: %q, allowedUIDs: [0]}\n"+
		"tokens: [{name: hsm-a, module: %q, label: k8s, pinFile: %q}]\n", state, filepath.Join(dir, "s"), token.Module, token.PINFile)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Mkdir(state, 0o700), os.Chown(state, 54321, 54321)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"create"}, {"rotate"}, {"bind", "--cluster", clusterA}} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), append(append([]string{"keys"}, args...), "--config", path), &out, &errOut)
		if code != 1 || !strings.Contains(errOut.String(), "what root makes on a SoftHSM token is in files that it cannot read\nhint: run this as the plugin's user") {
			t.Errorf("keys %v: exit %d: %s", args, code, errOut.String())
		}
	}
}
