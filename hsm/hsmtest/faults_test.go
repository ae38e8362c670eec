package hsmtest_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// The folder of a SoftHSM token goes away and comes back: the module then answers CKR_OBJECT_HANDLE_INVALID forever,
// with sessions that look sound, until it is initialised again.
func TestSoftHSMTakenAwayAndBack(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	token, s := softHSM(t, "aes-gcm")
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	for range 2 {
		putBack, err := token.TakeAway()
		if err != nil {
			t.Fatal(err)
		}
		d.Eventually(healing, "noticing that the token is gone", func() error {
			dek, err := d.Ring.Open(t.Context(), before.id.String(), before.wrapped)
			switch {
			case err == nil && string(dek) == "a DEK":
				return errors.New("the envelope still opens")
			case errors.Is(err, envelope.ErrUnavailable), errors.Is(err, envelope.ErrUnknownKey):
				return nil
			}
			t.Fatalf("the token is gone: %q, %v", dek, err)
			return nil
		})
		if err := putBack(); err != nil {
			t.Fatal(err)
		}
		before.mustHeal(t, d, "the token was put back")
	}
	d.Close()
}

// A token that was initialised again under its old label and PIN is another token: nothing of before is there.
func TestSoftHSMInitialisedAgain(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	token, s := softHSM(t, "aes-gcm")
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	pin, err := token.PIN()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(token.Store()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(token.Store(), 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "softhsm2-util", "--init-token", "--free", "--label", token.Label,
		"--so-pin", rand.Text(), "--pin", pin).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	keyIsGone(t, d, before)
	// A key of the same ring on the new token must not pass for the lost one either.
	d.Close()
	s.AddKey(t, time.Now().Add(-time.Minute))
	d = hsmtest.Start(t, s)
	if id := d.Ready(); id == before.id {
		t.Error("another key has the key_id of the one that is lost")
	}
	if _, err := d.Ring.Open(t.Context(), before.id.String(), before.wrapped); !errors.Is(err, envelope.ErrUnknownKey) {
		t.Errorf("opening what the lost key sealed: %v", err)
	}
	d.Close()
}

// A copy of a SoftHSM folder is a backup: the same key_ids, and it opens what the original sealed.
func TestSoftHSMCopyIsABackup(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	token, s := softHSM(t, "aes-gcm")
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	d.Close()
	restored, err := token.CopyTo(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(token.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Setenv("SOFTHSM2_CONF", restored.Conf()); err != nil {
		t.Fatal(err)
	}
	s.Token.PINFile = restored.PINFile
	d = hsmtest.Start(t, s)
	if id := d.Ready(); id != before.id {
		t.Errorf("the copy's key_id is %s, the original's %s", id, before.id)
	}
	if err := before.open(d); err != nil {
		t.Error(err)
	}
	d.Close()
}

// keyIsGone waits until the ring says that its current key is missing, and sees that nothing says ok meanwhile or after.
func keyIsGone(t *testing.T, d *hsmtest.Driver, before sealed) {
	t.Helper()
	d.Eventually(healing, "saying that the current key is missing", func() error {
		_ = d.Ring.Refresh(t.Context()) // an error is an outage, which is no ok either
		err := d.Ring.Exercise(t.Context())
		if err == nil {
			t.Fatal("a ring without its current key was exercised with success")
		}
		view := d.Ring.Advance()
		if view.Current != nil || !errors.Is(view.Problem, envelope.ErrKeyMissing) {
			return fmt.Errorf("current %v, problem %w", view.Current, view.Problem)
		}
		return nil
	})
	if dek, err := d.Ring.Open(t.Context(), before.id.String(), before.wrapped); !errors.Is(err, envelope.ErrUnknownKey) {
		t.Errorf("opening with a key that is gone: %q, %v", dek, err)
	}
	if _, err := d.Ring.Seal(t.Context(), before.id, []byte("x")); !errors.Is(err, envelope.ErrUnknownKey) {
		t.Errorf("sealing with a key that is gone: %v", err)
	}
}

// A key that another process deletes while it is in use.
func TestOpencryptokiKeyDeleted(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	token := tokens.Opencryptoki(t)
	s := subject(t, token)
	first := s.AddKey(t, time.Now().Add(-2*time.Minute))
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	if before.id.Version == string(first) {
		t.Fatalf("the older key is current")
	}
	if err := s.DeleteKey(t.Context(), []byte(before.id.Version)); err != nil {
		t.Fatal(err)
	}
	_, err := d.Ring.Open(t.Context(), before.id.String(), before.wrapped)
	t.Logf("the first answer after the deletion: %v", err)
	if err == nil {
		t.Error("a deleted key opened an envelope")
	}
	keyIsGone(t, d, before)
	// The older one serves Decrypt as before.
	older := d.Ring.Advance().Versions[0]
	if older.ID.Version != string(first) {
		t.Fatalf("the older key is gone too: %+v", older)
	}
	if err := d.RoundTrip(t.Context(), older.ID); err != nil {
		t.Errorf("the older key: %v", err)
	}
	d.Close()
}

// opencryptoki locks at the fourth wrong PIN. However often the plugin is started, one attempt is made, and the right
// PIN still works afterwards.
func TestOpencryptokiPINAcrossProcesses(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.Opencryptoki(t))
	right, err := os.ReadFile(s.Token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	s.AddKey(t, time.Now().Add(-time.Minute))
	hsmtest.WritePIN(t, s.Token.PINFile, hsmtest.WrongPIN)
	for range 6 {
		if err := s.LogInElsewhere(t.Context()); err == nil {
			t.Fatal("a wrong PIN was accepted")
		}
	}
	if err := s.Generate(t.Context()); err == nil {
		t.Error("key generation accepted a wrong PIN")
	}
	hsmtest.WritePIN(t, s.Token.PINFile, string(right))
	d := hsmtest.Start(t, s)
	d.Ready()
	d.Close()

	// Each other PIN is tried, but never the one that would lock the token: not even the right one is tried
	// then, until somebody has logged in by hand.
	for i := range 5 {
		hsmtest.WritePIN(t, s.Token.PINFile, fmt.Sprintf("0000001%d", i))
		err = s.LogInElsewhere(t.Context())
		t.Log(err)
	}
	hsmtest.WritePIN(t, s.Token.PINFile, string(right))
	if err := s.LogInElsewhere(t.Context()); err == nil || !strings.Contains(err.Error(), "the next wrong PIN locks it") {
		t.Errorf("with one attempt left: %v", err)
	}
	if err := s.LogInByHand(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.LogInElsewhere(t.Context()); err != nil {
		t.Errorf("after a login by hand: %v", err)
	}
}

// A TPM in dictionary-attack lock-out is said to be that, the PIN is left alone meanwhile, and the token heals by itself when
// the TPM does.
func TestTPMInLockOut(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.TPM(t))
	s.AddKey(t, time.Now().Add(-time.Minute))
	tpm := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "tpm2_dictionarylockout", args...).CombinedOutput(); err != nil {
			t.Fatalf("tpm2_dictionarylockout %v: %v: %s", args, err, out)
		}
	}
	tpm("--setup-parameters", "--max-tries=2", "--recovery-time=1000", "--lockout-recovery-time=1000")
	wrong := s
	wrong.Token.PINFile = filepath.Join(t.TempDir(), "pin")
	hsmtest.WritePIN(t, wrong.Token.PINFile, hsmtest.WrongPIN)
	for range 3 { // an attacker, who asks no attempt guard
		if err := wrong.LogInByHand(t.Context()); err == nil {
			t.Fatal("a wrong PIN was accepted")
		}
	}
	d := hsmtest.Start(t, s)
	problem := func() error { return d.Set.Members()[0].(interface{ Problem() error }).Problem() }
	d.Eventually(20*time.Second, "saying that it is locked, four times", func() error {
		if n := d.Calls.Of("C_OpenSession"); n < 4 {
			return fmt.Errorf("%d attempts", n)
		}
		return nil
	})
	if err := problem(); !errors.Is(err, envelope.ErrPINLocked) || !strings.Contains(hint.Of(err), "tpm2_dictionarylockout") {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
	if n := d.Calls.Of("C_Login"); n > 1 {
		t.Errorf("%d logins while it is locked", n)
	}
	tpm("--clear-lockout")
	took := d.Eventually(time.Minute, "healing", problem)
	t.Logf("healed %s after the lock-out; %d logins in all", took.Round(time.Millisecond), d.Calls.Of("C_Login"))
	d.Ready()
	if n := d.Calls.Of("C_Login"); n > 2 {
		t.Errorf("%d logins", n)
	}
	d.Close()
}
