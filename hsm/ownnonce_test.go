package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// ivLibraries are the two ways in which a library that makes the nonce tells it.
var ivLibraries = map[string]struct {
	how  faultp11.IVs
	size int
}{"written back": {faultp11.WrittenBack, 12}, "appended": {faultp11.Appended, 16}}

// newIVFleet is n copies of a token that makes its nonces, with one key made for that profile. Nothing runs yet.
func newIVFleet(t *testing.T, n int, how faultp11.IVs) *fleet {
	t.Helper()
	f := newFleet(t, n, func(common *hsm.Config, cfg *hsm.TokenConfig) {
		common.Profile, cfg.IVAppended = envelope.AESGCMHSMIV, how == faultp11.Appended
		module, err := faultp11.Open(filepath.Join(filepath.Dir(cfg.Module), "control"))
		if err != nil {
			t.Fatal(err)
		}
		module.MakeIVs(how)
	})
	for _, module := range f.modules {
		module.MakeIVs(how)
	}
	return f
}

// seal gives the envelope of a DEK, parsed.
func (f *fleet) seal() (envelope.Envelope, []byte, error) {
	f.t.Helper()
	wrapped, err := f.ring.Seal(f.t.Context(), f.current(), []byte("a DEK"))
	if err != nil {
		return envelope.Envelope{}, nil, err
	}
	parsed, err := envelope.Parse(wrapped)
	return parsed, wrapped, err
}

func (f *fleet) mustOpen(wrapped []byte) {
	f.t.Helper()
	dek, err := f.ring.Open(f.t.Context(), f.current().String(), wrapped)
	if err != nil || string(dek) != "a DEK" {
		f.t.Errorf("opening: %q, %v", dek, err)
	}
}

// The whole suite for PKCS#11 modules, over a library that makes the nonce.
func TestSuiteWithOwnNonces(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	for name, library := range ivLibraries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newIVFleet(t, 1, library.how)
			s := hsmtest.Subject{Common: f.common, Token: f.cfg}
			s.Common.Ring, s.Common.Log, s.Token.CallTimeout = "", nil, 2*time.Second
			s.MakeKey = func(_ context.Context, ring string, id []byte) error {
				common := s.Common
				common.Ring = ring
				_, err := hsm.Generate(t.Context(), common, s.Token, id)
				return err
			}
			hsmtest.Run(t, s)
		})
	}
}

// An envelope has the nonce that the token made; nonces differ; the key_id and the key are those of profile aes-gcm, and a
// ring of either opens what the other sealed.
func TestOwnNonces(t *testing.T) {
	t.Parallel()
	for name, library := range ivLibraries {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newIVFleet(t, 1, library.how)
			f.start()
			id := f.current()
			first, wrapped, err := f.seal()
			if err != nil || first.Profile != envelope.AESGCMHSMIV || len(first.Unique) != library.size {
				t.Fatalf("%+v, %v", first, err)
			}
			f.mustOpen(wrapped)
			if second, _, err := f.seal(); err != nil || bytes.Equal(first.Unique, second.Unique) {
				t.Errorf("%x and %x, %v", first.Unique, second.Unique, err)
			}
			f.stop()
			f.module.MakeIVs(faultp11.OfCaller) // as another token with a copy of the key
			f.common.Profile = envelope.AESGCM
			f.start()
			if f.current() != id {
				t.Errorf("key_id %s, in profile aes-gcm %s", id, f.current())
			}
			f.mustOpen(wrapped)
			older, wrapped, err := f.seal()
			if err != nil || older.Profile != envelope.AESGCM {
				t.Fatalf("%+v, %v", older, err)
			}
			f.stop()
			f.module.MakeIVs(library.how)
			f.common.Profile = envelope.AESGCMHSMIV
			f.start()
			f.mustOpen(wrapped)
		})
	}
}

// A nonce of zeros, or one that is reserved, is thrown away and the seal repeated; a token that makes no other is refused.
func TestUselessNonces(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]faultp11.IVSource{"zero": faultp11.ZeroIVs, "reserved": faultp11.ReservedIVs} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newIVFleet(t, 1, faultp11.WrittenBack)
			f.start()
			before := f.module.Calls("C_Encrypt")
			f.module.DrawIVs(source, 1)
			got, wrapped, err := f.seal()
			if err != nil || !envelope.UsableNonce(got.Unique) || f.module.Calls("C_Encrypt")-before != 2 {
				t.Errorf("%x after %d calls, %v", got.Unique, f.module.Calls("C_Encrypt")-before, err)
			}
			f.mustOpen(wrapped)
			f.module.DrawIVs(source, 0)
			if _, _, err := f.seal(); !errors.Is(err, envelope.ErrSelfTest) {
				t.Errorf("sealing: %v", err)
			}
			f.mustOpen(wrapped)
			f.stop()
			f.run()
			for _, err := range f.set.Connected(f.within(20 * time.Second)) {
				if !errors.Is(err, envelope.ErrSelfTest) {
					t.Errorf("connecting: %v", err)
				}
			}
		})
	}
}

// A nonce that was used before refuses the token as a place to seal with that key, for good. What was sealed is still
// opened, and another key is not concerned.
func TestRepeatedNonces(t *testing.T) {
	t.Parallel()
	f := newIVFleet(t, 1, faultp11.WrittenBack)
	f.start()
	f.module.DrawIVs(faultp11.ConstantIVs, 2)
	_, wrapped, err := f.seal()
	if err != nil {
		t.Fatal(err)
	}
	isRepeat := func() {
		t.Helper()
		_, out, err := f.seal()
		if !errors.Is(err, envelope.ErrNonceRepeated) || out != nil || !strings.Contains(hint.Of(err), "keys rotate") {
			t.Errorf("sealing: %x, %v (hint %q)", out, err, hint.Of(err))
		}
	}
	isRepeat()
	before := f.module.Calls("C_Encrypt")
	isRepeat() // although the nonces are random again
	if n := f.module.Calls("C_Encrypt") - before; n != 0 {
		t.Errorf("the token was asked %d times all the same", n)
	}
	f.mustOpen(wrapped)
	if err := f.ring.Exercise(t.Context()); !errors.Is(err, envelope.ErrNonceRepeated) {
		t.Errorf("the probe: %v", err)
	}
	f.stop()
	f.run()
	for _, err := range f.set.Connected(f.within(20 * time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := f.ring.Advance().Versions[0].ID
	if dek, err := f.ring.Open(t.Context(), id.String(), wrapped); err != nil || string(dek) != "a DEK" {
		t.Errorf("after a restart: %q, %v", dek, err)
	}
	changed := bytes.Clone(wrapped)
	changed[len(changed)-1] ^= 1
	if _, err := f.ring.Open(t.Context(), id.String(), changed); !errors.Is(err, envelope.ErrUnauthentic) {
		t.Errorf("an envelope that was changed: %v", err)
	}
	if _, err := f.ring.Seal(t.Context(), id, []byte("a DEK")); !errors.Is(err, envelope.ErrNonceRepeated) {
		t.Errorf("sealing after a restart: %v", err)
	}
	f.generate(time.Now())
	if err := f.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = f.ring.Exercise(t.Context()) // proves the new key, and speaks of the old one
	if err := f.ring.Exercise(t.Context()); err != nil {
		t.Errorf("with a new key: %v", err)
	}
	if _, wrapped, err = f.seal(); err != nil {
		t.Fatal(err)
	}
	f.mustOpen(wrapped)
}

// A counter that begins again, and two tokens that count alike, are both found.
func TestCountedNonces(t *testing.T) {
	t.Parallel()
	t.Run("restarted", func(t *testing.T) {
		t.Parallel()
		f := newIVFleet(t, 1, faultp11.WrittenBack)
		f.module.DrawIVs(faultp11.CountedIVs, 0)
		f.start()
		for range 3 {
			if _, _, err := f.seal(); err != nil {
				t.Fatal(err)
			}
		}
		f.stop()
		f.module.RestartIVs()
		f.run()
		for _, err := range f.set.Connected(f.within(20 * time.Second)) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := f.ring.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := f.ring.Exercise(t.Context()); !errors.Is(err, envelope.ErrNonceRepeated) {
			t.Errorf("the probe: %v", err)
		}
	})
	t.Run("two tokens", func(t *testing.T) {
		t.Parallel()
		f := newIVFleet(t, 2, faultp11.Appended)
		f.start()
		for _, m := range f.modules {
			m.DrawIVs(faultp11.CountedIVs, 0)
		}
		id := f.current()
		errs := map[int]error{}
		for i := range f.modules {
			_, errs[i] = envelope.SealDEK(t.Context(), f.member(i), envelope.AESGCMHSMIV, id, []byte("a DEK"))
		}
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs[0], errs[1]), envelope.ErrNonceRepeated) {
			t.Errorf("%v", errs)
		}
		_, wrapped, err := f.seal() // the other one goes on
		if err != nil {
			t.Fatal(err)
		}
		f.mustOpen(wrapped)
	})
}

// A token that tells its nonce in the other way than configured, and one that makes none, are told apart, with what to set.
func TestOwnNoncesWrongWay(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		how      faultp11.IVs
		profile  envelope.Profile
		appended bool
		hint     string
	}{
		"appended, configured as written back": {faultp11.Appended, envelope.AESGCMHSMIV, false, "set ivAppended: true for this token in the configuration: it works on this token"},
		"written back, configured as appended": {faultp11.WrittenBack, envelope.AESGCMHSMIV, true, "set ivAppended: false for this token in the configuration: it works on this token"},
		"takes the caller's":                   {faultp11.OfCaller, envelope.AESGCMHSMIV, false, "set profile: aes-gcm in the configuration: it works on this token"},
		"written back, profile aes-gcm":        {faultp11.WrittenBack, envelope.AESGCM, false, "set profile: aes-gcm-hsm-iv in the configuration: it works on this token"},
		"appended, profile aes-gcm":            {faultp11.Appended, envelope.AESGCM, false, "set profile: aes-gcm-hsm-iv, and ivAppended: true for this token, in the configuration: it works on this token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.module.MakeIVs(test.how)
			if strings.Contains(test.hint, "hsm-iv") { // a token with HMAC is better used with that
				b.module.Fail("C_SignInit", pkcs11.CKR_FUNCTION_NOT_SUPPORTED).UntilCleared()
			}
			b.common.Profile, b.cfg.IVAppended, b.common.Ring = test.profile, test.appended, "another"
			made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))
			if made.Outcome != hsm.NotMade || !errors.Is(err, hsm.ErrProfile) || hint.Of(err) != test.hint {
				t.Errorf("%+v, %v\nhint: %s", made, err, hint.Of(err))
			}
		})
	}
}

// A token that repeats nonces, and a memory that cannot be used, are found before a key is made.
func TestNoKeyWithoutNonces(t *testing.T) {
	t.Parallel()
	newRing := func(t *testing.T) *bench {
		t.Helper()
		b := newBench(t, nil)
		b.module.MakeIVs(faultp11.WrittenBack)
		b.common.Profile, b.common.Ring = envelope.AESGCMHSMIV, "another"
		return b
	}
	t.Run("repeated", func(t *testing.T) {
		t.Parallel()
		b := newRing(t)
		b.module.DrawIVs(faultp11.ConstantIVs, 0)
		made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))
		if made.Outcome != hsm.NotMade || !errors.Is(err, hsm.ErrProfile) || !strings.Contains(err.Error(), envelope.ErrNonceRepeated.Error()) ||
			hint.Of(err) != "set profile: hmac-kdf in the configuration: it works on this token" {
			t.Errorf("%+v, %v\nhint: %s", made, err, hint.Of(err))
		}
	})
	t.Run("no memory", func(t *testing.T) {
		t.Parallel()
		b := newRing(t)
		if err := os.WriteFile(filepath.Join(b.common.StateDir, "nonces"), []byte("something else"), 0o600); err != nil {
			t.Fatal(err)
		}
		made, err := hsm.Generate(t.Context(), b.common, b.cfg, mustID(t))
		if made.Outcome != hsm.NotMade || !errors.Is(err, envelope.ErrNonceMemory) || errors.Is(err, hsm.ErrProfile) || !strings.Contains(hint.Of(err), "stateDir") {
			t.Errorf("%+v, %v\nhint: %s", made, err, hint.Of(err))
		}
	})
}

// A key that is limited to GCM has no fingerprint here, and is shown and not served.
func TestKeyWithoutECB(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil) // its key is made for profile aes-gcm
	b.module.MakeIVs(faultp11.WrittenBack)
	b.common.Profile = envelope.AESGCMHSMIV
	made := b.generate(time.Now())
	b.start()
	keys, err := b.set.Keys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Fatalf("%v, %v", keys, err)
	}
	for _, key := range keys {
		isNew := bytes.Equal(key.CKAID, made)
		if isNew != (key.Refused == "") || !isNew && !strings.Contains(key.Refused, "CKM_AES_ECB, by which this profile takes the fingerprint") {
			t.Errorf("%s: %q", key.CKAID, key.Refused)
		}
	}
}
