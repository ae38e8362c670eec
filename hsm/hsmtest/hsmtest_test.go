package hsmtest_test

import (
	"os"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

func TestMain(m *testing.M) {
	hsmtest.Main(runner{m})
}

// runner is the tests of this package and the workers in them.
type runner struct{ *testing.M }

func (r runner) Run() int { return testworker.Run(r.M) }

// subject is a throw-away token as the suite wants it.
func subject(t *testing.T, token *tokens.Token) hsmtest.Subject {
	t.Helper()
	profile, err := envelope.ParseProfile(token.Profile)
	if err != nil {
		t.Fatal(err)
	}
	return hsmtest.Subject{
		Common: hsm.Config{Ring: "kube-secrets", Profile: profile, StateDir: t.TempDir()},
		Token: hsm.TokenConfig{
			Name: "hsm-a", Module: token.Module, Reserved: token.Reserved, Label: token.Label, PINFile: token.PINFile,
			MaxSessions: 4, CallTimeout: callTimeout,
		},
		MakeKey:  token.MakeKey,
		WrongPIN: true,
	}
}

// softHSM is a plain SoftHSM token, in a process that Apart made.
func softHSM(t *testing.T, profile string) (*softhsm.Token, hsmtest.Subject) {
	t.Helper()
	token := softhsm.ForTest(t, "k8s")
	if err := os.Setenv("SOFTHSM2_CONF", token.Conf()); err != nil {
		t.Fatal(err)
	}
	return token, subject(t, &tokens.Token{Module: token.Module, Label: token.Label, PINFile: token.PINFile, Profile: profile})
}

func TestSoftHSMWithGCM(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	_, s := softHSM(t, "aes-gcm")
	hsmtest.Run(t, s)
}

func TestSoftHSMWithHMAC(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	_, s := softHSM(t, "hmac-kdf")
	hsmtest.Run(t, s)
}

func TestOpencryptoki(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	hsmtest.Run(t, subject(t, tokens.Opencryptoki(t)))
}

func TestNSS(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.NSS(t))
	s.Common.AllowImportedKeys = true // softokn says CKA_LOCAL false of keys that it made itself
	hsmtest.Run(t, s)
}

// A token without a PIN is used with no login at all, and with an empty PIN.
func TestNSSWithoutPIN(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.NSSWithoutPIN(t))
	s.Common.AllowImportedKeys = true
	s.AddKey(t, time.Now().Add(-time.Minute))
	s.Token.PINRules = pinfile.Rules{Empty: true}
	for _, login := range []hsm.Login{hsm.LoginNone, hsm.LoginPIN} {
		s.Token.Login = login
		d := hsmtest.Start(t, s)
		if err := seal(t, d).open(d); err != nil {
			t.Errorf("login %d: %v", login, err)
		}
		logins := d.Calls.Of("C_Login")
		d.Close()
		if login == hsm.LoginNone && logins != 0 {
			t.Errorf("%d logins", logins)
		}
	}
}

func TestP11KitRemote(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	hsmtest.Run(t, subject(t, tokens.P11Kit(t).Token))
}

func TestTPM(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.TPM(t))
	s.OneProcess = true // it has three places for objects, and no resource manager
	hsmtest.Run(t, s)
}

// A TPM's module reads its keys once. A resource manager lets a second worker and other programs use it at once.
func TestTPMWithManager(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	s := subject(t, tokens.TPMWithManager(t))
	s.BlindToNewKeys = true
	s.AddKey(t, time.Now().Add(-time.Minute))
	hsmtest.LiveRing(t, s)
}

// callTimeout leaves room for the race detector on a loaded machine.
const callTimeout = 2 * time.Second
