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

	"github.com/hsm-kms/hsm-kms/hsm/guard"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// Commands that root runs work in the stateDir of the service's user, and all that they leave is that user's: the lock of
// the ring, the lock and the record of a login.
func TestRootInAStateDirOfTheService(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("two users need root")
	}
	const serviceUID = 54321
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, serviceUID, serviceUID), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	// An earlier release left these.
	for _, name := range []string{"keys.lock"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := prepareStateDir(dir); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	refused := func() (guard.Outcome, error) { return guard.Refused, errors.New("refused") }
	tag := func([]byte) (uint32, error) { return 1, nil }
	if err := guard.New(dir, nil).Attempt(t.Context(), guard.Token{Name: "token", Clean: true}, tag, refused); err == nil {
		t.Fatal("no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, entry := range entries {
		info, _, err := ownedfile.Lstat(filepath.Join(dir, entry.Name()))
		if err != nil || info.UID != serviceUID {
			t.Errorf("%s belongs to uid %d (%v)", entry.Name(), info.UID, err)
		}
	}
}

// A folder above stateDir that others may write lets them put another stateDir in its place, without the record of refused PINs.
func TestStateDirThatOthersMayReplace(t *testing.T) {
	t.Parallel()
	above := t.TempDir()
	dir := filepath.Join(above, "state")
	if err := prepareStateDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(above, 0o777); err != nil {
		t.Fatal(err)
	}
	err := prepareStateDir(dir)
	if err == nil || !strings.Contains(err.Error(), "others may write to "+above) || !strings.HasPrefix(hint.Of(err), "chmod go-w "+above) {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
}

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

// What root makes on a SoftHSM token is in files of root's, which the service does not see: no key is made.
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
