package hsm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// ceremony makes a further version on a copy that is in no configuration; CopyNew brings it to the tokens.
func (f *fleet) ceremony(activation time.Time) *softhsm.Token {
	f.t.Helper()
	source, err := f.tokens[0].CopyTo(filepath.Join(f.t.TempDir(), "source"))
	if err != nil {
		f.t.Fatal(err)
	}
	id, err := envelope.NewCKAID(activation)
	if err != nil {
		f.t.Fatal(err)
	}
	f.generateOn(source, id)
	return source
}

// generateOn makes a key on a token through a module of its own.
func (f *fleet) generateOn(token *softhsm.Token, ckaID []byte) {
	f.t.Helper()
	cfg := f.cfg
	cfg.Module = faultp11.New(f.t, token.Module, faultp11.Options{SoftHSMConf: token.Conf()}).Path()
	cfg.PINFile = token.PINFile
	if _, err := hsm.Generate(f.t.Context(), f.common, cfg, ckaID); err != nil {
		f.t.Fatal(err)
	}
}

// look re-reads the ring and exercises it, as the plugin does all the time.
func (f *fleet) look() envelope.View {
	f.t.Helper()
	if err := f.ring.Refresh(f.t.Context()); err != nil {
		f.t.Errorf("reading the ring: %v", err)
	}
	if err := f.ring.Exercise(f.t.Context()); err != nil {
		f.t.Errorf("the probe: %v", err)
	}
	return f.ring.Advance()
}

// A version that has reached one token only is deferred. What others sealed under it is opened where it is, which
// shows that it is in use; and nothing that a token lacks is said to be unknown while the one that holds it is away.
func TestCopyLags(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	f.start()
	first := f.current()
	if err := f.ceremony(time.Now()).CopyNew(f.tokens[1]); err != nil {
		t.Fatal(err)
	}
	v := f.look()
	if v.Current == nil || v.Current.ID != first || v.Deferred == nil {
		t.Fatalf("current %v, deferred %v: wanted the first version to stay and the second to be deferred", v.Current, v.Deferred)
	}
	second := v.Deferred.ID
	f.servedBy(first, 0)
	f.servedBy(second, 1) // as when another node sealed under it
	f.healthy(second)
	f.servedBy(first, 0)
	f.modules[1].FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := f.ring.Seal(ctx, second, make([]byte, 32)); !errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, envelope.ErrUnknownKey) {
		t.Errorf("with the only token that holds it away: %v", err)
	}
	f.modules[1].Clear()
	f.untilUsable(1, true)
	f.servedBy(second, 1)
}

// The same, and the copy arrives before anybody needed it: the version takes its place. Nothing here hangs, so a slow call is
// a busy machine's.
func TestCopyArrives(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 10 * time.Second })
	f.start()
	first := f.current()
	source := f.ceremony(time.Now())
	for i, token := range f.tokens {
		if err := source.CopyNew(token); err != nil {
			t.Fatal(err)
		}
		v := f.look()
		if ready := i == len(f.tokens)-1; (v.Current.ID != first) != ready || (v.Deferred == nil) != ready {
			t.Errorf("on %d of %d tokens: current %s, deferred %v", i+1, len(f.tokens), v.Current.ID, v.Deferred)
		}
	}
	f.healthy(f.current())
	f.servedBy(f.current(), 0)
}

// One label and one CKA_ID on two tokens, and other material behind them: each serves its own key_id and never the
// other's, and which of them is current is never guessed.
func TestOtherMaterialUnderOneID(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, nil)
	f.join(softhsm.ForTest(t, "k8s"))
	id, err := envelope.NewCKAID(time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range f.tokens {
		f.generateOn(token, id)
	}
	f.run()
	for _, err := range f.set.Connected(f.within(20 * time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var duplicates []envelope.KeyID
	holder := map[envelope.KeyID]int{}
	for _, v := range f.ring.Advance().Versions {
		if string(v.CKAID) != string(id) {
			continue
		}
		duplicates = append(duplicates, v.ID)
		holder[v.ID] = int(v.Tokens[0][len("hsm-")] - 'a')
	}
	if len(duplicates) != 2 || holder[duplicates[0]] == holder[duplicates[1]] {
		t.Fatalf("the versions with that CKA_ID: %v", holder)
	}
	err = f.ring.Exercise(t.Context())
	if v := f.ring.Advance(); v.Current != nil && string(v.Current.CKAID) == string(id) || v.Problem == nil && v.Deferred == nil {
		t.Errorf("current %v, deferred %v, problem %v, probe %v: wanted none of the two", v.Current, v.Deferred, v.Problem, err)
	}
	for _, duplicate := range duplicates {
		f.servedBy(duplicate, holder[duplicate])
		before := f.uses(1 - holder[duplicate])
		wrapped := f.roundTrip(duplicate)
		for _, other := range duplicates {
			if other == duplicate {
				continue
			}
			if _, err := f.ring.Open(t.Context(), other.String(), wrapped); !errors.Is(err, envelope.ErrUnauthentic) {
				t.Errorf("opening under the duplicate: %v", err)
			}
		}
		if f.uses(1-holder[duplicate]) == before {
			t.Error("the duplicate was never asked: this test proves nothing")
		}
	}
}

// A token that fails the self-test is left out, loudly, and does not take the healthy one with it: at start, and when
// it begins to fail while it serves.
func TestSelfTestFailsOnOneToken(t *testing.T) {
	t.Parallel()
	for _, profile := range []envelope.Profile{envelope.AESGCM, envelope.HMACKDF} {
		t.Run(profile.String(), func(t *testing.T) {
			t.Parallel()
			function := "C_Encrypt"
			if profile == envelope.HMACKDF {
				function = "C_Sign"
			}
			f := newFleet(t, 2, func(c *hsm.Config, _ *hsm.TokenConfig) { c.Profile = profile })
			f.start()
			id := f.current()
			f.servedBy(id, 0)
			f.module.Truncate(function).UntilCleared()
			f.eventually(5*time.Second, func() error { return f.ring.Exercise(t.Context()) })
			f.untilUsable(0, false)
			f.servedBy(id, 1)
			f.healthy(id)
			f.stop()

			f.run() // again: it is found out before it serves
			problems := f.set.Connected(f.within(20 * time.Second))
			if !errors.Is(problems[0], envelope.ErrSelfTest) || problems[1] != nil {
				t.Errorf("at start: %v", problems)
			}
			if v := f.look(); v.Current == nil || v.Current.ID != id || v.Problem != nil {
				t.Errorf("current %v, problem %v", v.Current, v.Problem)
			}
			f.servedBy(id, 1)
			f.module.Clear()
			f.untilUsable(0, true)
			f.servedBy(id, 0)
			f.healthy(id)
		})
	}
}

// A wrong PIN on one token is tried once, whatever the others do, and the others serve. The copies have one serial and
// one label, so that nothing but the PIN file tells them apart.
func TestPINRefusedOnOneToken(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	right, err := os.ReadFile(f.tokens[0].PINFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.tokens[0].PINFile, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := f.module.Calls("C_Login")
	f.run()
	problems := f.set.Connected(f.within(20 * time.Second))
	if !errors.Is(problems[0], envelope.ErrPINRefused) || problems[1] != nil {
		t.Fatalf("%v", problems)
	}
	id := f.look().Current.ID
	for range 3 { // each time the second token logs in again
		f.modules[1].Fail("C_EncryptInit", pkcs11.CKR_DEVICE_REMOVED).Once()
		generation := f.member(1).Generation()
		f.roundTrip(id)
		f.eventually(5*time.Second, func() error {
			if f.member(1).Generation() == generation {
				return errors.New("not connected again")
			}
			return nil
		})
		attempts := f.module.Calls("C_OpenSession")
		if err := f.module.WaitCalls(f.within(10*time.Second), "C_OpenSession", attempts+1); err != nil {
			t.Fatal(err)
		}
	}
	f.servedBy(id, 1)
	f.healthy(id)
	if n := f.module.Calls("C_Login") - before; n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	if err := os.WriteFile(f.tokens[0].PINFile, right, 0o600); err != nil {
		t.Fatal(err)
	}
	f.untilUsable(0, true)
	f.servedBy(id, 0)
}
