package hsm_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/filelock"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// While another program logs in, SoftHSM shows no token, or one that cannot be used. A plugin, a command and doctor look a
// second time, and nothing is said.
func TestSecondLook(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*faultp11.Module){
		"C_GetTokenInfo": func(m *faultp11.Module) { m.Fail("C_GetTokenInfo", pkcs11.CKR_GENERAL_ERROR).Times(4) }, // two slots, twice each
		"no token":       func(m *faultp11.Module) { m.Fail("C_GetTokenInfo", pkcs11.CKR_TOKEN_NOT_RECOGNIZED).Times(4) },
		"C_Login":        func(m *faultp11.Module) { m.Fail("C_Login", pkcs11.CKR_GENERAL_ERROR).Once() },
		"no PIN":         func(m *faultp11.Module) { m.Fail("C_Login", pkcs11.CKR_USER_PIN_NOT_INITIALIZED).Once() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *hsm.Config, token *hsm.TokenConfig) { token.CallTimeout = 20 * time.Second })
			fault(b.module)
			b.start()
			if log := b.log.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
				t.Error(log)
			}
			b.stop()
			b.module.Clear()
			fault(b.module)
			if _, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t)); err != nil {
				t.Errorf("keys: %v", err)
			}
			b.module.Clear()
			fault(b.module)
			if seen := hsm.Inspect(t.Context(), b.common, []hsm.TokenConfig{b.cfg})[0]; seen.Err != nil || seen.Guard != nil {
				t.Errorf("doctor: %v, %v", seen.Err, seen.Guard)
			}
		})
	}
}

// No other program of this stateDir logs in during the second look: SoftHSM reads its tokens in C_Initialize.
func TestSecondLookHoldsTheLoginLock(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, token *hsm.TokenConfig) { token.CallTimeout = 20 * time.Second })
	b.module.Fail("C_Login", pkcs11.CKR_GENERAL_ERROR).Once()
	b.module.HangCall("C_Initialize").After(1).Once()
	b.run()
	if err := b.module.WaitHung(b.within(20*time.Second), "C_Initialize", 1); err != nil {
		t.Fatal(err)
	}
	locks, err := filepath.Glob(filepath.Join(b.common.StateDir, "login-*.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("%q, %v", locks, err)
	}
	if _, err := filelock.Try(locks[0]); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("the lock: %v", err)
	}
	b.module.ClearFunction("C_Initialize")
	b.eventually(20*time.Second, b.set.Problem)
}
