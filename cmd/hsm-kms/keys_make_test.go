package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// newMakeRig is a token with one key, and a short callTimeout.
func newMakeRig(t *testing.T) *retireRig {
	t.Helper()
	if testing.Short() {
		t.Skip("make test runs it")
	}
	r := &retireRig{rig: newRig(t, &sharedToken{token: softhsm.ForTest(t, "k8s")})}
	r.generateAt(r.tokens[0], time.Now().Add(-time.Hour))
	r.write()
	text, err := os.ReadFile(r.configPath())
	r.must(err)
	r.file("config.yaml", strings.Replace(string(text), "callTimeout: 1500ms", "callTimeout: 400ms", 1))
	return r
}

// startCommand starts a command as a process of its own.
func (r *retireRig) startCommand(ctx context.Context, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	r.t.Helper()
	cmd = exec.CommandContext(ctx, os.Args[0], append(args, "--config", r.configPath())...) //nolint:gosec // ourselves, as hsm-kms
	cmd.Args[0] = "hsm-kms"
	if r.ignores != "" { // only a shell can start a process so
		link := filepath.Join(r.dir, "hsm-kms")
		r.must(os.Symlink(os.Args[0], link))
		cmd = exec.CommandContext(ctx, "sh", append([]string{"-c", "trap '' " + r.ignores + `; exec "$0" "$@"`, link}, cmd.Args[1:]...)...) //nolint:gosec // ourselves
	}
	cmd.Env = append(os.Environ(), "TRANSCRIPT="+filepath.Join(r.dir, "transcript"), "GORACE=atexit_sleep_ms=0")
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	r.must(cmd.Start())
	return cmd, stdout, stderr
}

// process runs a command as a process of its own, which a hanging call does not outlive: its worker is killed too. Killed,
// when it hangs, if kill.
func (r *retireRig) process(kill string, args ...string) (out, errOut string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	cmd, stdout, stderr := r.startCommand(ctx, args...)
	if kill != "" {
		r.must(r.tokens[0].faults.WaitHung(ctx, kill, 1))
		_ = cmd.Process.Kill()
	}
	_ = cmd.Wait()
	r.tokens[0].faults.Kill() // a worker would finish the call that hangs when that goes on
	r.must(r.tokens[0].faults.WaitAlone(ctx))
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// keys rotate reports the truth about a key, whatever C_GenerateKey does; the first call of it is the trial for the session.
func TestKeysRotateTellsTheTruth(t *testing.T) {
	t.Parallel()
	fn := "C_GenerateKey"
	for name, test := range map[string]struct {
		fault  func(*faultp11.Module) *faultp11.Plan
		kill   bool
		code   int
		state  string // in JSON; empty: there is none
		stderr string
		there  bool
	}{
		"it works":                    {nil, false, 0, "pending", "", true},
		"it fails":                    {func(m *faultp11.Module) *faultp11.Plan { return m.Fail(fn, pkcs11.CKR_DEVICE_ERROR) }, false, 2, "", "hsm-kms: no key was made: ", false},
		"it works, and says it fails": {func(m *faultp11.Module) *faultp11.Plan { return m.FailAfter(fn, pkcs11.CKR_DEVICE_ERROR) }, false, 0, "pending", "", true},
		"it works, and refuses the template": {func(m *faultp11.Module) *faultp11.Plan {
			return m.FailAfter(fn, pkcs11.CKR_TEMPLATE_INCONSISTENT)
		}, false, 0, "pending", "", true},
		"it hangs":            {func(m *faultp11.Module) *faultp11.Plan { return m.HangCall(fn) }, false, 2, "unknown", "it is unknown whether the key with CKA_ID ", false},
		"it works, and hangs": {func(m *faultp11.Module) *faultp11.Plan { return m.HangCallAfter(fn) }, false, 2, "pending", " was made, and a call into the module has not returned", true},
		"killed before":       {func(m *faultp11.Module) *faultp11.Plan { return m.HangCall(fn) }, true, -1, "", "", false},
		"killed after":        {func(m *faultp11.Module) *faultp11.Plan { return m.HangCallAfter(fn) }, true, -1, "", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newMakeRig(t)
			faults := r.tokens[0].faults
			if test.fault != nil {
				test.fault(faults).After(1).Once()
			}
			kill := ""
			if test.kill {
				kill = fn
			}
			out, errOut, code := r.process(kill, "keys", "rotate", "--activate-in", "1h", "-o", "json")
			faults.Clear()
			if code != test.code || !strings.Contains(errOut, test.stderr) || code == 0 && errOut != "" {
				t.Errorf("exit %d: %s", code, errOut)
			}
			if code == 2 && test.state != "" && !strings.Contains(errOut, "hsm-kms keys list\n") {
				t.Errorf("how to find out is missing: %s", errOut)
			}
			var said keyJSON
			if err := json.Unmarshal([]byte(out), &said); (err == nil) != (test.state != "") || said.State != test.state {
				t.Errorf("said %s, %v", out, err)
			}
			if test.state != "" && (said.Local != nil) != (said.KeyID != "") {
				t.Errorf("attributes of a key that nobody has seen: %s", out)
			}
			keys := r.keys()
			// A call that hangs is the worker's: it goes on after the command, and may make the key yet.
			hangsBefore := strings.HasPrefix(name, "it hangs") || name == "killed before"
			if there := len(keys) == 2; there != test.there && !hangsBefore {
				t.Errorf("the ring is %+v", keys)
			}
			if test.there && test.state != "" && (said.ID != keys[1].ID || said.KeyID != keys[1].KeyID) {
				t.Errorf("told of %s, and it is %s", said.KeyID, keys[1].KeyID)
			}
		})
	}
}

// A profile that does not work on the token is a refusal, and leaves nothing behind.
func TestKeysCreateRefusesTheProfile(t *testing.T) {
	t.Parallel()
	r := newMakeRig(t)
	r.empty(r.tokens[0])
	r.tokens[0].faults.Fail("C_EncryptInit", pkcs11.CKR_MECHANISM_INVALID).UntilCleared()
	out, errOut, code := r.hsmkms("keys", "create", "-o", "json")
	r.tokens[0].faults.Clear()
	if code != 1 || out != "" || !strings.HasPrefix(errOut, "hsm-kms: no key was made: token hsm-a: the token cannot serve the profile aes-gcm: ") ||
		!strings.Contains(errOut, "hint: set profile: hmac-kdf in the configuration: it works on this token\n") {
		t.Errorf("exit %d: %s%s", code, out, errOut)
	}
	if keys := r.keys(); len(keys) != 0 {
		t.Errorf("the ring is %+v", keys)
	}
}

// A key that is made and then not served is named, and nobody is told to delete it.
func TestKeysCreateOfAKeyThatIsRefused(t *testing.T) {
	t.Parallel()
	r := newMakeRig(t)
	r.empty(r.tokens[0])
	faults := r.tokens[0].faults
	faults.Fail("C_GenerateKey", pkcs11.CKR_TEMPLATE_INCONSISTENT).Times(4) // no session keys: nothing can be tried
	faults.Fail("C_EncryptInit", pkcs11.CKR_MECHANISM_INVALID).UntilCleared()
	out, errOut, code := r.hsmkms("keys", "create", "-o", "json")
	faults.Clear()
	var said keyJSON
	if err := json.Unmarshal([]byte(out), &said); err != nil || said.State != string(envelope.Refused) || said.ID == "" || said.Problem == "" {
		t.Errorf("%+v, %v", said, err)
	}
	if code != 1 || !strings.Contains(errOut, "was made and is not served: the token does not use it as aes-gcm") || strings.Contains(errOut, "delete") || strings.Contains(errOut, "remove") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}
