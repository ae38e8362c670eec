package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// A C_GenerateKey that hangs does not keep its caller, and its outcome is never "not made".
func TestGenerateHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 200 * time.Millisecond })
	b.module.HangCall("C_GenerateKey").After(1).Once() // the first one makes a key for the session
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_ = b.module.WaitHung(ctx, "C_GenerateKey", 1)
		cancel()
	}()
	start := time.Now()
	made, err := hsm.Generate(ctx, b.common, b.cfg, mustID(t))
	if made.Outcome != hsm.Unknown || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", made, err)
	}
	if took := time.Since(start); took > 20*b.cfg.CallTimeout {
		t.Errorf("it took %s", took)
	}
	b.module.Clear()
	if err := b.module.WaitIdle(b.within(10 * time.Second)); err != nil {
		t.Error(err)
	}
}

// A profile that the token cannot serve is found before a key is made, and the one that works there is named.
func TestGenerateProvesTheProfile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fails   []string
		after   int // calls that look at the key that is there
		code    uint
		profile envelope.Profile
		reason  string
		hint    string
	}{
		"it does not encrypt with it": {[]string{"C_EncryptInit"}, 1, pkcs11.CKR_MECHANISM_INVALID, envelope.AESGCM,
			"of a session key: the token does not use it as aes-gcm: C_EncryptInit: CKR_MECHANISM_INVALID", "set profile: hmac-kdf in the configuration: it works on this token"},
		"it cannot open what it sealed": {[]string{"C_Decrypt"}, 1, pkcs11.CKR_FUNCTION_FAILED, envelope.AESGCM,
			"trying a session key: ", "set profile: hmac-kdf in the configuration: it works on this token"},
		"it has no HMAC": {[]string{"C_SignInit"}, 0, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, envelope.HMACKDF,
			"CKR_FUNCTION_NOT_SUPPORTED", "set profile: aes-gcm in the configuration: it works on this token"},
		"it has neither": {[]string{"C_SignInit", "C_EncryptInit"}, 0, pkcs11.CKR_MECHANISM_INVALID, envelope.HMACKDF,
			"CKR_MECHANISM_INVALID", "no other profile works on this token either; docs/hsm-support.md says what a token must offer"},
		"it makes no keys": {[]string{"C_GenerateKey"}, 0, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, envelope.AESGCM,
			"it makes no keys for it: ", "no other profile works on this token either; docs/hsm-support.md says what a token must offer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.common.Profile = test.profile
			for _, fn := range test.fails {
				b.module.Fail(fn, test.code).After(test.after).UntilCleared()
			}
			made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))
			b.module.Clear()
			if made.Outcome != hsm.NotMade || !errors.Is(err, hsm.ErrProfile) || !containsAll(err.Error(), "the token cannot serve the profile "+test.profile.String(), test.reason) {
				t.Errorf("%+v, %v", made, err)
			}
			if got := hint.Of(err); got != test.hint {
				t.Errorf("hint: %s", got)
			}
			b.common.Profile = envelope.AESGCM
			if n := b.start().keysOnToken(); n != 1 {
				t.Errorf("%d keys are on the token: something was left behind", n)
			}
		})
	}
}

// Where a key cannot be tried for the session, it is made and looked at.
func TestGenerateWithoutSessionKeys(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.module.Fail("C_GenerateKey", pkcs11.CKR_TEMPLATE_INCONSISTENT).Times(4)
	made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))
	if made.Outcome != hsm.Made || err != nil || made.Key.ID.Fingerprint == [8]byte{} {
		t.Errorf("%+v, %v", made, err)
	}
}

// One call that fails once is no verdict on the profile.
func TestGenerateTriesTheProfileTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.module.Fail("C_EncryptInit", pkcs11.CKR_DEVICE_ERROR).After(1).Once() // the first one is the look at the key that is there
	if made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t)); made.Outcome != hsm.Made || err != nil {
		t.Errorf("%+v, %v", made, err)
	}
}

// keysOnToken counts the versions of the ring, those that are not served too.
func (b *bench) keysOnToken() int {
	b.t.Helper()
	keys, err := b.set.Keys(b.within(10 * time.Second))
	if err != nil {
		b.t.Fatal(err)
	}
	return len(keys)
}

func containsAll(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// A library that reads its keys once does not show the process that made a key that key. It is made all the same, and told so,
// whatever the call said; and no second one with its CKA_ID is made.
func TestGenerateWithAFrozenLibrary(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	const fn = "C_GenerateKey"
	for name, test := range map[string]struct {
		ring  string
		fault func(m *faultp11.Module) *faultp11.Plan
		is    hsm.Outcome
	}{
		"a ring with a key":                  {ringName, nil, hsm.Made},
		"an empty ring":                      {"another", nil, hsm.Made},
		"it works, and says it fails":        {ringName, func(m *faultp11.Module) *faultp11.Plan { return m.FailAfter(fn, pkcs11.CKR_DEVICE_ERROR) }, hsm.Made},
		"it works, and refuses the template": {ringName, func(m *faultp11.Module) *faultp11.Plan { return m.FailAfter(fn, pkcs11.CKR_TEMPLATE_INCONSISTENT) }, hsm.Made},
		"it fails":                           {ringName, func(m *faultp11.Module) *faultp11.Plan { return m.Fail(fn, pkcs11.CKR_DEVICE_ERROR) }, hsm.NotMade},
		"it refuses the template once":       {ringName, func(m *faultp11.Module) *faultp11.Plan { return m.Fail(fn, pkcs11.CKR_TEMPLATE_INCONSISTENT) }, hsm.Made},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 10 * time.Second })
			b.module.Traits(faultp11.Frozen)
			b.common.Ring = test.ring
			if test.fault != nil {
				test.fault(b.module).After(1).Once() // the first one makes a key for the session
			}
			id := mustID(t)
			made, err := hsm.Generate(t.Context(), b.common, b.cfg, id)
			if made.Outcome != test.is || (err == nil) != (test.is == hsm.Made) {
				t.Errorf("%+v, %v", made, err)
			}
			b.module.Traits(0)
			keys, err := b.another().set.Keys(b.within(20 * time.Second))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, key := range keys {
				if bytes.Equal(key.CKAID, id) {
					n++
				}
			}
			if (n == 1) != (test.is == hsm.Made) || n > 1 {
				t.Errorf("%d keys with its CKA_ID are on the token: %+v", n, keys)
			}
		})
	}
}

// Where the module requires what crypto11 does not do, the error says how to make the key all the same.
func TestGenerateWhereCrypto11Cannot(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.module.Traits(faultp11.SlotInfoFirst)
	made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))
	if made.Outcome != hsm.NotMade || err == nil || !containsAll(hint.Of(err), "initArgs", "C_GetSlotInfo", "hsm-kms keys rotate --print-id") {
		t.Errorf("%+v, %v, hint: %s", made, err, hint.Of(err))
	}
}
