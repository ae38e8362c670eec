package hsm_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// padBench is a token with a PIN pad, at which somebody enters the right PIN as long as entered has it. change may alter
// the configuration before the first key is made.
func padBench(t *testing.T, change func(*hsm.Config, *hsm.TokenConfig)) (b *bench, entered string) {
	t.Helper()
	b = newBench(t, nil)
	entered = b.token.PINFile + ".pad"
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(entered, right, 0o600); err != nil {
		t.Fatal(err)
	}
	b.module = faultp11.New(t, b.token.Module, faultp11.Options{SoftHSMConf: b.token.Conf(), PINPad: entered})
	b.module.Traits(faultp11.PINPad)
	b.common.StateDir = t.TempDir()
	b.cfg.Module, b.cfg.Login, b.cfg.PINFile = b.module.Path(), hsm.LoginPINPad, ""
	if change != nil {
		change(&b.common, &b.cfg)
	}
	return b, entered
}

// A token with a PIN pad is used, and keys are made on it, without a PIN file. It asks for the PIN once each time.
func TestPINPad(t *testing.T) {
	t.Parallel()
	b, _ := padBench(t, nil)
	b.module.DelayAll(20 * time.Millisecond) // a second worker would have logged in before the command ends
	b.generate(time.Now())
	b.module.DelayAll(0)
	b.start()
	if n := b.module.Calls("C_Login"); n != 2 {
		t.Errorf("%d logins by a command and the plugin", n)
	}
}

// A PIN that the pad refused is not asked for again, until a person allows it.
func TestPINPadRefused(t *testing.T) {
	t.Parallel()
	b, entered := padBench(t, nil)
	right, err := os.ReadFile(entered)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(entered, []byte(wrongPIN), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run()
	for range 3 {
		problem := b.set.Connected(b.within(10 * time.Second))[0]
		if !errors.Is(problem, envelope.ErrPINRefused) || !strings.Contains(hint.Of(problem), "PIN pad") {
			t.Errorf("%v (hint %q)", problem, hint.Of(problem))
		}
		_ = b.lookAgain()
	}
	if n := b.module.Calls("C_Login"); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
	if err := os.WriteFile(entered, right, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hsm.AllowPIN(t.Context(), b.common, b.cfg); err != nil {
		t.Fatal(err)
	}
	b.eventually(10*time.Second, b.set.Problem)
}

// A pad at which nobody is asks at most once in 30 s.
func TestPINPadCancelled(t *testing.T) {
	t.Parallel()
	b, _ := padBench(t, func(c *hsm.Config, _ *hsm.TokenConfig) { *c = hsm.WithClock(*c, fastClock(10)) })
	b.module.Fail("C_Login", pkcs11.CKR_FUNCTION_CANCELED).Once()
	began := time.Now()
	b.run()
	b.eventually(20*time.Second, b.set.Problem)
	if took, n := time.Since(began), b.module.Calls("C_Login"); n != 2 || took < 2*time.Second {
		t.Errorf("it was asked %d times within %s, which are %s to it", n, took, 10*took)
	}
}

// login: pinpad with a token that has no pad, and login: none with one that requires a login, are errors of the configuration.
func TestLoginDoesNotFitTheToken(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		login hsm.Login
		says  string
	}{
		"no pad":         {hsm.LoginPINPad, "CKF_PROTECTED_AUTHENTICATION_PATH is clear"},
		"login required": {hsm.LoginNone, "the token requires a login"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			before := b.module.Calls("C_Login")
			b.cfg.Login = test.login
			b.run()
			for what, err := range map[string]error{
				"serve": b.set.Connected(b.within(10 * time.Second))[0],
				"keys":  errorOf(hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))),
			} {
				if !errors.Is(err, hsm.ErrConfiguration) || !strings.Contains(err.Error(), test.says) || !strings.Contains(hint.Of(err), "login: pin") {
					t.Errorf("%s: %v (hint %q)", what, err, hint.Of(err))
				}
			}
			if n := b.module.Calls("C_Login") - before; n != 0 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

func errorOf(_ hsm.Creation, err error) error { return err }

// An empty PIN reaches the token only where the configuration says that it is one.
func TestEmptyPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.writePIN(nil)
	before := b.module.Calls("C_Login")
	b.run()
	problem := b.set.Connected(b.within(10 * time.Second))[0]
	if !errors.Is(problem, pinfile.ErrMalformed) || !strings.Contains(hint.Of(problem), "emptyPIN") {
		t.Errorf("%v (hint %q)", problem, hint.Of(problem))
	}
	if n := b.module.Calls("C_Login") - before; n != 0 {
		t.Errorf("%d logins", n)
	}
	b.stop()
	b.cfg.PINRules.Empty = true
	b.run()
	if problem := b.set.Connected(b.within(10 * time.Second))[0]; !errors.Is(problem, envelope.ErrPINRefused) { // SoftHSM has another
		t.Error(problem)
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("%d logins", n)
	}
}

// A library that does not lock is not used, and what to do is said.
func TestCannotLock(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.module.Traits(faultp11.OneThread)
	b.run()
	problem := b.set.Connected(b.within(10 * time.Second))[0]
	if problem == nil || !strings.Contains(problem.Error(), "CKR_CANT_LOCK") || !strings.Contains(hsm.HintFor(problem), "several threads") {
		t.Errorf("%v (advice %q)", problem, hsm.HintFor(problem))
	}
}
