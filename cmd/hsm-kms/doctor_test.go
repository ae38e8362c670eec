package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// makeShared makes the token that the rigs are copies of.
func makeShared(t *testing.T) *sharedToken {
	t.Helper()
	shared := &sharedToken{token: softhsm.ForTest(t, "k8s")}
	id, err := envelope.NewCKAID(time.Now().Add(-48 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	shared.id = id
	r := newRig(t, shared)
	r.generate(r.tokens[0], id)
	shared.token = r.tokens[0].store
	return shared
}

// must fails the rig's test on an error.
func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestDoctorOfBrokenSetups breaks one thing at a time: doctor must find that, say what to do, and say nothing else.
func TestDoctorOfBrokenSetups(t *testing.T) {
	t.Parallel()
	shared := makeShared(t)
	for _, group := range [][]broken{filesBroken(), tokensBroken(), ringsBroken(), pluginsBroken(), encryptionsBroken()} {
		for _, b := range group {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, shared)
				b.spoil(r)
				r.write()
				found, code, _ := r.doctor()
				b.judge(t, r, found, code)
			})
		}
	}
}

func (b broken) judge(t *testing.T, r *rig, found []doctor.Finding, code int) {
	t.Helper()
	var failed, warned []doctor.Finding
	for _, f := range found {
		switch {
		case f.Result == doctor.Fail:
			failed = append(failed, f)
		case f.Result == doctor.Warn && f.Check != "backup":
			warned = append(warned, f)
		}
		if f.Result != doctor.Pass && (f.Hint == "" || f.Detail == "") {
			t.Errorf("%s %s has no hint or no detail: %+v", f.Check, f.Token, f)
		}
		if text := f.Detail + f.Hint; strings.Contains(text, "c2VjcmV0") || strings.Contains(text, "wrong\n") {
			t.Errorf("a secret is in %+v", f)
		}
	}
	remarkable, wantCode := failed, 1
	if b.warns {
		remarkable, wantCode = append(failed, warned...), 0
	}
	if code != wantCode {
		t.Errorf("exit code %d, want %d", code, wantCode)
	}
	if len(remarkable) != 1 {
		t.Fatalf("%d findings, want one: %+v", len(remarkable), remarkable)
	}
	got := remarkable[0]
	if got.Check != b.check || got.Token != b.token || !strings.Contains(got.Hint, b.hint) {
		t.Errorf("got %+v, want check %s, token %q and a hint with %q", got, b.check, b.token, b.hint)
	}
	if b.check == "pin-counters" && !b.warns || b.check == "pin-latch" {
		logins := r.tokens[0].faults.Calls("C_Login")
		if b.check == "pin-latch" {
			logins-- // the one that was refused
		}
		if logins != 0 {
			t.Errorf("C_Login was called %d times more than it may be", logins)
		}
	}
}

// TestDoctorOfSoundSetup: nothing is remarkable, and nothing on the token or in the folders has changed afterwards.
func TestDoctorOfSoundSetup(t *testing.T) {
	t.Parallel()
	r := newRig(t, makeShared(t))
	copied, err := r.tokens[0].store.CopyTo(filepath.Join(r.dir, "hsm-b"))
	r.must(err)
	r.addToken("hsm-b", copied)
	encryption("secrets,configmaps", goodKMS+","+identity)(r)
	r.serve("ok", r.currentKey())
	r.write()
	before := r.objects()
	found, code, errOut := r.doctor()
	seen := map[string]bool{}
	for _, f := range found {
		seen[f.Check] = true
		if f.Result != doctor.Pass || f.Hint != "" {
			t.Errorf("%+v", f)
		}
	}
	if code != 0 || errOut != "" {
		t.Errorf("exit code %d, standard error %q", code, errOut)
	}
	for _, check := range []string{
		"configuration", "state-dir", "audit", "socket-folder", "module", "pin-file", "token", "mechanisms", "pin-counters", "pin-latch", "login",
		"key-attributes", "same-keys", "ring", "self-test", "cluster", "plugin", "encryption-config", "encryption-endpoint", "encryption-provider",
		"encryption-order", "encryption-resources",
	} {
		if !seen[check] {
			t.Errorf("check %s was not made", check)
		}
	}
	if after := r.objects(); after != before {
		t.Errorf("the token's objects were %s and are %s", before, after)
	}
	if n := r.tokens[0].faults.Calls("C_GenerateKey") + r.tokens[0].faults.Calls("C_CreateObject") + r.tokens[0].faults.Calls("C_DestroyObject") +
		r.tokens[0].faults.Calls("C_SetAttributeValue"); n != 0 {
		t.Errorf("%d calls that change a token", n)
	}
	if n := r.tokens[0].faults.OpenSessions(); n != 0 {
		t.Errorf("%d sessions were left open", n)
	}
}

// objects are the files of the first token's objects, with their sizes and times.
func (r *rig) objects() string {
	r.t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.tokens[0].store.Store(), "*", "*.object"))
	r.must(err)
	var b strings.Builder
	for _, path := range paths {
		info, err := os.Stat(path)
		r.must(err)
		if filepath.Base(path) != "token.object" { // SoftHSM notes logins there
			fmt.Fprintln(&b, path, info.Size(), info.ModTime())
		}
	}
	return b.String()
}

// TestDoctorTriesPINAgain: a wrong PIN is tried once, however often doctor runs; --try-pin tries it once more; a right
// one heals everything.
func TestDoctorTriesPINAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, makeShared(t))
	right, err := os.ReadFile(r.tokens[0].pin)
	r.must(err)
	r.tokens[0].pin = r.file("pin", "wrong\n")
	r.write()
	logins := func(want uint64) {
		t.Helper()
		if n := r.tokens[0].faults.Calls("C_Login"); uint64(n) != want {
			t.Errorf("C_Login was called %d times, want %d", n, want)
		}
	}
	for range 3 {
		if _, code, _ := r.doctor(); code != 1 {
			t.Errorf("exit code %d", code)
		}
	}
	logins(1)
	if found, code, _ := r.doctor("--try-pin"); code != 1 || !failed(found, "login") {
		t.Errorf("exit code %d: %+v", code, found)
	}
	logins(2)
	if found, code, _ := r.doctor(); code != 1 || !failed(found, "pin-latch") {
		t.Errorf("exit code %d: %+v", code, found)
	}
	logins(2)
	r.file("pin", string(right))
	if found, code, _ := r.doctor(); code != 0 {
		t.Errorf("exit code %d: %+v", code, found)
	}
	logins(3)
}

func failed(found []doctor.Finding, check string) bool {
	for _, f := range found {
		if f.Check == check && f.Result == doctor.Fail {
			return true
		}
	}
	return false
}

func TestDoctorTable(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"doctor", "--config", filepath.Join(t.TempDir(), "absent.yaml")}, &out, &errOut)
	if code != 1 || !strings.Contains(out.String(), "FAIL") || !strings.Contains(out.String(), "hint: ") {
		t.Errorf("exit code %d, printed:\n%s", code, out.String())
	}
	if want := "hsm-kms: 1 of 1 checks failed, 0 warn\n"; errOut.String() != want {
		t.Errorf("standard error %q, want %q", errOut.String(), want)
	}
}

// The configuration names the module that is loaded, so that who can put another in its place has the PIN.
func TestDoctorOfAConfigurationInAnOpenFolder(t *testing.T) {
	t.Parallel()
	r := newRig(t, makeShared(t))
	r.write()
	text, err := os.ReadFile(r.configPath())
	r.must(err)
	open := filepath.Join(r.dir, "open")
	r.must(os.Mkdir(open, 0o700))
	r.must(os.WriteFile(filepath.Join(open, "config.yaml"), text, 0o600))
	for _, mode := range []os.FileMode{0o755, 0o777} {
		r.chmod(open, mode)
		found, _, _ := r.doctor("--config", filepath.Join(open, "config.yaml"))
		warned := slices.ContainsFunc(found, func(f doctor.Finding) bool {
			return f.Check == "configuration" && strings.Contains(f.Detail, "others may write to "+open) && f.Hint == "chmod go-w "+open
		})
		if warned != (mode == 0o777) {
			t.Errorf("mode %#o: %+v", mode, found)
		}
	}
}
