package hsmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/atomicfile"
)

// testWrongPIN: a PIN that the token refused is tried once, whatever is started again, and a corrected file heals.
func testWrongPIN(t *testing.T, s Subject) {
	if !s.WrongPIN {
		t.Skip("no wrong PIN may be tried on this token")
	}
	right, err := os.ReadFile(s.Token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	s.Token.PINFile = filepath.Join(t.TempDir(), "pin")
	s.Common.StateDir = t.TempDir()
	WritePIN(t, s.Token.PINFile, WrongPIN)
	d := Start(t, s)
	if err := d.connected()[0]; !errors.Is(err, envelope.ErrPINRefused) {
		t.Fatalf("wrong PIN: %v", err)
	}
	// The next attempts of the supervisor come by themselves; each opens a session before it asks the attempt guard.
	d.Eventually(20*time.Second, "further attempts", func() error {
		if n := d.Calls.Of("C_OpenSession"); n < 4 {
			return fmt.Errorf("%d attempts", n)
		}
		return nil
	})
	if n := d.Calls.Of("C_Login"); n != 1 {
		t.Errorf("a wrong PIN was tried %d times", n)
	}
	d.Close()
	again := Start(t, s)
	if err := again.connected()[0]; !errors.Is(err, envelope.ErrPINRefused) {
		t.Errorf("wrong PIN after a restart: %v", err)
	}
	if n := again.Calls.Of("C_Login"); n != 0 {
		t.Errorf("a restart tried a wrong PIN %d times more", n)
	}
	WritePIN(t, s.Token.PINFile, string(right))
	took := again.Eventually(10*time.Second, "healing", func() error {
		if again.Set.Generation() == 0 {
			return again.Set.Members()[0].(interface{ Problem() error }).Problem()
		}
		return nil
	})
	again.Ready()
	t.Logf("healed %s after the PIN file was corrected", took.Round(time.Millisecond))
	again.Close()
}

// WrongPIN has the form of a PIN on every token here and is none's.
const WrongPIN = "00000001"

// WritePIN replaces a PIN file as an operator should: another file, renamed over it.
func WritePIN(t *testing.T, path, pin string) {
	t.Helper()
	if err := atomicfile.WriteState(path, []byte(pin)); err != nil {
		t.Fatal(err)
	}
}
