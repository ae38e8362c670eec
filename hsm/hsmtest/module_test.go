package hsmtest_test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// TestModule runs the suite over hardware of your own. CONTRIBUTING.md, "Adding a token", says how.
func TestModule(t *testing.T) {
	module := os.Getenv("HSM_KMS_TEST_MODULE")
	if module == "" {
		t.Skip("HSM_KMS_TEST_MODULE names no module: CONTRIBUTING.md")
	}
	if tokens.Apart(t) {
		return
	}
	profile, err := envelope.ParseProfile(cmp.Or(os.Getenv("HSM_KMS_TEST_PROFILE"), "aes-gcm"))
	if err != nil {
		t.Fatal(err)
	}
	timeout, err := time.ParseDuration(cmp.Or(os.Getenv("HSM_KMS_TEST_CALL_TIMEOUT"), callTimeout.String()))
	if err != nil {
		t.Fatal(err)
	}
	on := func(name string) bool { return os.Getenv(name) == "1" }
	hsmtest.Run(t, hsmtest.Subject{
		Common: hsm.Config{
			Ring: cmp.Or(os.Getenv("HSM_KMS_TEST_RING"), "hsm-kms-test"), Profile: profile, StateDir: t.TempDir(),
			AllowImportedKeys: on("HSM_KMS_TEST_IMPORTED_KEYS"),
		},
		Token: hsm.TokenConfig{
			Name: "yours", Module: module, Label: os.Getenv("HSM_KMS_TEST_TOKEN_LABEL"),
			Serial: os.Getenv("HSM_KMS_TEST_TOKEN_SERIAL"), PINFile: os.Getenv("HSM_KMS_TEST_PIN_FILE"),
			Reserved: os.Getenv("HSM_KMS_TEST_RESERVED"), MaxSessions: 4, CallTimeout: timeout,
			IVAppended: on("HSM_KMS_TEST_IV_APPENDED"),
		},
		ForeignKeys: !on("HSM_KMS_TEST_MAKE_KEYS"),
		WrongPIN:    on("HSM_KMS_TEST_WRONG_PIN"),
	})
}

// TestModuleFromOutside runs TestModule as somebody with an HSM does: everything by environment variables.
func TestModuleFromOutside(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	token := softhsm.ForTest(t, "k8s")
	env := append(token.Env(), "HSM_KMS_TEST_MODULE="+token.Module, "HSM_KMS_TEST_TOKEN_LABEL=k8s", "HSM_KMS_TEST_APART=",
		"HSM_KMS_TEST_PIN_FILE="+token.PINFile, "HSM_KMS_TEST_PROFILE=hmac-kdf")
	if err := again(t, env); err == nil {
		t.Error("an empty ring passed, although no key was to be made")
	}
	// With keys of its own, and then with the keys that are there.
	if err := again(t, append(env, "HSM_KMS_TEST_MAKE_KEYS=1")); err != nil {
		t.Error(err)
	}
	if err := again(t, env); err != nil {
		t.Error(err)
	}
}

// again runs TestModule in another process.
func again(t *testing.T, env []string) error {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestModule$", "-test.v")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err == nil && !strings.Contains(string(out), "--- PASS: TestModule ") {
		err = errors.New("it did not run")
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
