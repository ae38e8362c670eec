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
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// A wrong PIN is tried once, in this process and in the next ones, until the file changes; then the plugin
// heals without a restart.
func TestWrongPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	right, err := os.ReadFile(b.token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	b.writePIN([]byte("9999999\n"))
	before := b.module.Calls("C_Login")
	for restart := range 5 { // a crash loop under kubelet
		b.run()
		problem := b.set.Connected(b.within(10 * time.Second))[0]
		if !errors.Is(problem, envelope.ErrPINRefused) || hint.Of(problem) == "" {
			t.Fatalf("start %d: %v (hint %q)", restart, problem, hint.Of(problem))
		}
		if strings.Contains(problem.Error(), "9999999") {
			t.Fatal("the PIN is in the error")
		}
		if restart < 4 {
			b.stop()
		}
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("the wrong PIN was tried %d times over five starts", n)
	}
	if _, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t)); !errors.Is(err, envelope.ErrPINRefused) {
		t.Errorf("a command with the latched PIN: %v", err)
	}
	if n := b.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("a command tried the latched PIN: %d logins", n)
	}
	b.writePIN(right)
	b.eventually(10*time.Second, func() error {
		return errors.Join(b.ring.Refresh(t.Context()), b.ring.Exercise(t.Context()))
	})
	// The token counts a failed login all that time. It is said where a PIN is tried, which is once: the right one.
	if n := strings.Count(b.log.String(), "a wrong PIN has been tried"); n != 1 {
		t.Errorf("%d lines about the token's counter:\n%s", n, b.log)
	}
}

// writePIN replaces the PIN file.
func (b *bench) writePIN(pin []byte) {
	b.t.Helper()
	if err := os.WriteFile(b.token.PINFile+".new", pin, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(b.token.PINFile+".new", b.token.PINFile); err != nil {
		b.t.Fatal(err)
	}
}

func mustID(t *testing.T) []byte {
	t.Helper()
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The token's own counters: a last try is never made, a locked PIN never tried, a low count is said.
func TestLoginCounters(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		flag    uint
		refused error
		says    string
	}{
		{"final try", pkcs11.CKF_USER_PIN_FINAL_TRY, envelope.ErrPINRefused, "next wrong PIN locks it"},
		{"locked", pkcs11.CKF_USER_PIN_LOCKED, envelope.ErrPINLocked, "no login is tried"},
		{"count low", pkcs11.CKF_USER_PIN_COUNT_LOW, nil, "a wrong PIN has been tried"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			before := b.module.Calls("C_Login")
			b.module.TokenFlags(test.flag)
			b.run()
			problem := b.set.Connected(b.within(10 * time.Second))[0]
			if test.refused != nil {
				if !errors.Is(problem, test.refused) || !strings.Contains(problem.Error(), test.says) {
					t.Errorf("problem: %v", problem)
				}
				if n := b.module.Calls("C_Login") - before; n != 0 {
					t.Errorf("%d logins", n)
				}
				b.module.TokenFlags(0)
				b.eventually(10*time.Second, func() error { return b.set.Problem() })
				return
			}
			if problem != nil || !strings.Contains(b.log.String(), test.says) {
				t.Errorf("problem %v, log %s", problem, b.log)
			}
		})
	}
}
