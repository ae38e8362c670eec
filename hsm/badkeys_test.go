package hsm_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// withOlder makes n more versions of the ring, which were current before.
func (b *bench) withOlder(n int) *bench {
	b.t.Helper()
	for i := range n {
		b.generate(time.Now().Add(-time.Duration(i+1) * time.Hour))
	}
	return b
}

// older is a version that was current before.
func (b *bench) older() envelope.Version {
	b.t.Helper()
	for _, v := range b.ring.Advance().Versions {
		if v.State == envelope.Retained {
			return v
		}
	}
	b.t.Fatal("the ring has one version")
	return envelope.Version{}
}

// One key that cannot be used, whatever the token says to it: the others are served, nothing is connected again, and the
// key is served again when it can be used. A short run has one code; TestSuspension has all of them.
func TestOneBadKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 2 * time.Second }).withOlder(3).start()
	good, bad := b.current(), b.older()
	codes := hsm.KeyErrors
	if testing.Short() {
		codes = codes[:1]
	}
	for _, code := range codes {
		name := code.String()
		b.module.BadKey(bad.CKAID, uint(code))
		_, err := b.ring.Seal(t.Context(), bad.ID, make([]byte, 32))
		if !errors.Is(err, envelope.ErrUnavailable) || !errors.Is(err, envelope.ErrKeySuspended) {
			t.Errorf("%s: sealing with the bad key: %v", name, err)
		}
		b.roundTrip(good)
		b.healthy(good)
		if err := b.ring.Refresh(t.Context()); err != nil {
			t.Errorf("%s: reading the ring: %v", name, err)
		}
		for _, v := range b.ring.Advance().Versions {
			if (v.Suspended["hsm-a"] != nil) != (v.ID == bad.ID) {
				t.Errorf("%s: %s is suspended: %v", name, v.ID, v.Suspended)
			}
		}
		b.module.BadKey(nil, 0)
		b.eventually(10*time.Second, func() error {
			_, err := b.ring.Seal(t.Context(), bad.ID, make([]byte, 32))
			return err
		})
	}
	if n := b.set.Generation(); n != 1 {
		t.Errorf("generation %d", n)
	}
	if log := b.log.String(); !strings.Contains(log, "the key is suspended") || !strings.Contains(log, "can use the key again") {
		t.Errorf("the log does not tell:\n%s", log)
	}
}

// A new connection, as each command makes one, to a token with a key that cannot be used: the others are served.
func TestStartWithBadKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).withOlder(2)
	b.run()
	if err := b.set.Connected(b.within(20 * time.Second))[0]; err != nil {
		t.Fatal(err)
	}
	if err := b.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	bad := b.ring.Advance().Versions[0]
	b.stop()
	for _, code := range hsm.KeyErrors {
		b.module.BadKey(bad.CKAID, uint(code))
		b.start()
		refused := 0
		for _, v := range b.ring.Advance().Versions {
			if v.State == envelope.Refused {
				refused++
				if !strings.Contains(v.Refused, code.String()) {
					t.Errorf("refused: %s", v.Refused)
				}
			}
		}
		if refused != 1 {
			t.Errorf("%s: %d keys are refused, want one", code, refused)
		}
		b.roundTrip(b.current())
		b.stop()
	}
	other := b.generate(time.Now().Add(time.Hour))
	b.start()
	for _, v := range b.ring.Advance().Versions {
		if string(v.CKAID) == string(other) {
			if all, err := b.set.Destroy(t.Context(), v.ID); err != nil || all[0].Outcome != hsm.Destroyed {
				t.Errorf("destroying another key: %v, %v", all, err)
			}
		}
	}
}

// The only key of a ring: the token is of no use without it, and serves again with it.
func TestOnlyKeyIsBad(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	id := b.current()
	b.module.BadKey([]byte(id.Version), pkcs11.CKR_KEY_HANDLE_INVALID)
	if _, err := b.ring.Seal(t.Context(), id, make([]byte, 32)); !errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, envelope.ErrUnknownKey) {
		t.Errorf("sealing: %v", err)
	}
	b.module.BadKey(nil, 0)
	b.eventually(10*time.Second, func() error { return b.ring.Exercise(t.Context()) })
	b.roundTrip(id)
}

// The current key cannot be used on the first token: the second seals, and the first goes on with the other keys.
func TestCurrentKeyIsBadOnOneToken(t *testing.T) {
	t.Parallel()
	f := &fleet{bench: newBench(t, nil).withOlder(3)}
	token, err := f.token.CopyTo(t.TempDir() + "/copy")
	if err != nil {
		t.Fatal(err)
	}
	f.tokens, f.modules = append(f.tokens, f.token), append(f.modules, f.module)
	f.join(token)
	f.start()
	id, older := f.current(), f.older()
	f.module.BadKey([]byte(id.Version), pkcs11.CKR_KEY_HANDLE_INVALID)
	for range 20 {
		f.roundTrip(id)
	}
	f.healthy(id)
	view := f.ring.Advance()
	if missing := view.Missing(); len(missing) != 1 || missing[0] != "hsm-a" {
		t.Errorf("tokens that cannot use the current key: %v", view.Missing())
	}
	f.servedBy(older.ID, 0)
	if n := f.member(0).Generation(); n != 1 {
		t.Errorf("generation %d", n)
	}
	f.module.BadKey(nil, 0)
	f.eventually(10*time.Second, func() error {
		view := f.look()
		if missing := view.Missing(); missing != nil {
			return fmt.Errorf("missing on %v", missing)
		}
		return nil
	})
	f.servedBy(id, 0)
}

// Half of the ring cannot be used: the worker is replaced, once. It does not help, and the other half is served all the while.
func TestHalfOfTheRingIsBad(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 2 * time.Second }).withOlder(1).start()
	good, bad := b.current(), b.older()
	starts := b.module.Calls("C_Initialize")
	b.module.BadKey(bad.CKAID, pkcs11.CKR_OBJECT_HANDLE_INVALID)
	if _, err := b.ring.Seal(t.Context(), bad.ID, make([]byte, 32)); !errors.Is(err, envelope.ErrKeySuspended) {
		t.Errorf("the bad key: %v", err)
	}
	b.eventually(20*time.Second, func() error {
		b.roundTrip(good)
		if n := b.set.Generation(); n != 2 {
			return fmt.Errorf("generation %d", n)
		}
		return nil
	})
	if _, err := b.ring.Seal(t.Context(), bad.ID, make([]byte, 32)); !errors.Is(err, envelope.ErrKeySuspended) {
		t.Errorf("the bad key in the new worker: %v", err)
	}
	b.module.BadKey(nil, 0)
	b.eventually(10*time.Second, func() error {
		b.roundTrip(good)
		_, err := b.ring.Seal(t.Context(), bad.ID, make([]byte, 32))
		return err
	})
	if n := b.module.Calls("C_Initialize") - starts; n != 1 {
		t.Errorf("%d workers were started", n)
	}
}

// One call in a hundred fails: no request does, and nothing is connected again.
func TestOneCallInAHundredFails(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 5 * time.Second }).start()
	id := b.current()
	for range 10 {
		injected := b.module.Injected("C_EncryptInit")
		b.module.Fail("C_EncryptInit", pkcs11.CKR_OBJECT_HANDLE_INVALID).After(99).Once()
		b.encryptTogether(4, 30)
		if b.module.Injected("C_EncryptInit") == injected {
			t.Fatal("no call has failed: this test proves nothing")
		}
	}
	b.healthy(id)
	if n := b.set.Generation(); n != 1 {
		t.Errorf("generation %d", n)
	}
}

// A call in ten fails: the worker is replaced, whatever single checks find.
func TestManyCallsFail(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 5 * time.Second }).start()
	for range 20 {
		b.module.Fail("C_EncryptInit", pkcs11.CKR_FUNCTION_FAILED).After(5).Once()
		b.encryptTogether(1, 10)
	}
	b.eventually(20*time.Second, func() error {
		if n := b.set.Generation(); n != 2 {
			return fmt.Errorf("generation %d", n)
		}
		return nil
	})
	if log := b.log.String(); !strings.Contains(log, "calls failed within a minute") {
		t.Errorf("the log does not tell why:\n%s", log)
	}
}

// The token has no more sessions, and says so by any value: callers wait for those that there are.
func TestSessionLimitByAnyValue(t *testing.T) {
	t.Parallel()
	for _, code := range []uint{pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_HOST_MEMORY, 0x8000001A} {
		t.Run(p11.RV(code).String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 5 * time.Second }).start()
			b.module.DelayAll(3 * time.Millisecond)
			b.encryptTogether(3, 3) // opens some
			b.module.Fail("C_OpenSession", code).UntilCleared()
			b.encryptTogether(16, 5)
			if b.module.Injected("C_OpenSession") == 0 {
				t.Error("no session was asked for: this test proves nothing")
			}
			if n := b.set.Generation(); n != 1 {
				t.Errorf("generation %d", n)
			}
			b.module.Clear()
			b.encryptTogether(16, 2)
		})
	}
}

// A library without read-only sessions gets read-write ones, and nothing is different.
func TestReadWriteOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 5 * time.Second })
	b.module.Traits(faultp11.ReadWriteOnly)
	b.start()
	b.encryptTogether(16, 5)
	if n := b.set.Generation(); n != 1 {
		t.Errorf("generation %d", n)
	}
}

// A library that reads its keys once: a key that another node seals with is found by a new worker, without a failed request,
// though that takes its time to start; and a key_id that there is not causes no second one.
func TestKeyIsSought(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) {
		cfg.CallTimeout, cfg.ConnectTimeout = 8*time.Second, 30*time.Second
	})
	b.module.Traits(faultp11.Frozen)
	b.start()
	first := b.current()
	second, wrapped := b.sealElsewhere(first)
	b.module.Delay("C_Initialize", time.Second)
	starts := b.module.Calls("C_Initialize")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
					b.roundTripOf(first)
				}
			}
		})
	}
	if dek, err := b.ring.Open(b.within(20*time.Second), second.String(), wrapped); err != nil || string(dek) != "a DEK" {
		t.Errorf("opening: %q, %v", dek, err)
	}
	close(stop)
	clients.Wait()
	unknown := second
	unknown.Fingerprint[0] ^= 1
	for range 3 {
		if _, err := b.ring.Open(t.Context(), unknown.String(), wrapped); !errors.Is(err, envelope.ErrUnknownKey) {
			t.Errorf("a key that there is not: %v", err)
		}
	}
	if n := b.module.Calls("C_Initialize") - starts; n != 1 {
		t.Errorf("%d workers were started", n)
	}
}

// sealElsewhere makes another current key, as another node does, and seals with it.
func (b *bench) sealElsewhere(before envelope.KeyID) (id envelope.KeyID, wrapped []byte) {
	b.t.Helper()
	other := b.another()
	defer other.stop()
	other.generate(time.Now())
	var err error
	other.eventually(20*time.Second, func() error {
		if err := errors.Join(other.ring.Refresh(b.t.Context()), other.ring.Exercise(b.t.Context())); err != nil {
			return err
		}
		if id = other.current(); id == before {
			return errors.New("the new key is not current")
		}
		wrapped, err = other.ring.Seal(b.t.Context(), id, []byte("a DEK"))
		return err
	})
	return id, wrapped
}

// roundTripOf is roundTrip for a goroutine.
func (b *bench) roundTripOf(id envelope.KeyID) {
	wrapped, err := b.ring.Seal(b.t.Context(), id, []byte("a DEK"))
	if err == nil {
		_, err = b.ring.Open(b.t.Context(), id.String(), wrapped)
	}
	if err != nil {
		b.t.Errorf("a request: %v", err)
	}
}

// The same library, and nobody names the new key: it is found in time. TestLiveLibrary has a library that shows it by itself.
func TestNewKeyIsFound(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *hsm.Config, _ *hsm.TokenConfig) { *c = hsm.WithViewAge(*c, time.Second) })
	b.module.Traits(faultp11.Frozen)
	b.start()
	first := b.current()
	b.sealElsewhere(first)
	b.eventually(20*time.Second, func() error {
		b.roundTrip(first)
		if err := b.ring.Refresh(t.Context()); err != nil {
			return err
		}
		if err := b.ring.Exercise(t.Context()); err != nil {
			return err
		}
		if b.current() == first {
			return errors.New("the new key is not current")
		}
		return nil
	})
	if n := b.set.Generation(); n != 2 {
		t.Errorf("generation %d", n)
	}
}

// A token that has no session left for a second worker: the first is ended before, and that is remembered.
func TestSwapWithoutASecondSession(t *testing.T) {
	t.Parallel()
	for _, way := range []hsm.Swap{"", hsm.SwapStopFirst} {
		t.Run("swap "+string(way), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout, cfg.Swap = 5*time.Second, way })
			b.module.Traits(faultp11.Frozen)
			b.start()
			first := b.current()
			second, wrapped := b.sealElsewhere(first)
			b.module.MaxSessions(b.module.OpenSessions())
			if way == hsm.SwapStopFirst {
				b.module.MaxSessions(0)
			}
			if _, err := b.ring.Open(b.within(20*time.Second), second.String(), wrapped); err != nil {
				t.Errorf("opening: %v", err)
			}
			b.module.MaxSessions(0)
			b.roundTrip(first)
			told := strings.Contains(b.log.String(), "refuses a second connection")
			if told != (way == "") || !strings.Contains(b.log.String(), "ended before another one is connected") {
				t.Errorf("the log:\n%s", b.log)
			}
		})
	}
}
