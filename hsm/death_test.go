package hsm_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// A library that ends its process, in any function and by any means, under load: the token serves again at once, with the
// same key_id and no wrong answer, and the log names what died where. In a short run each function has one of the means, in turn.
func TestLibraryDies(t *testing.T) {
	t.Parallel()
	deaths := []struct {
		name string
		is   faultp11.Death
	}{{"segfault", faultp11.Segfault}, {"abort", faultp11.Abort}, {"exit", faultp11.Exit}, {"heap smash", faultp11.HeapSmash}}
	for turn, death := range deaths {
		functions := faultFunctions
		if testing.Short() {
			functions = nil
			for i := turn; i < len(faultFunctions); i += len(deaths) {
				functions = append(functions, faultFunctions[i])
			}
		}
		t.Run(death.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 2 * time.Second }).start()
			id := b.current()
			for _, function := range functions {
				load := b.startLoad(id, 4)
				load.waitForGood(8)
				b.module.Die(function, death.is).Once()
				b.provoke(function)
				if err := b.module.WaitCalls(b.within(20*time.Second), function, b.module.Calls(function)+1); err != nil {
					t.Fatal(err)
				}
				b.module.ClearFunction("C_EncryptInit")
				b.module.ClearFunction("C_SignInit")
				b.eventually(20*time.Second, func() error {
					if b.module.Injected(function) == 0 {
						return errors.New("it has not died")
					}
					return b.ring.Exercise(t.Context())
				})
				load.waitForGood(32)
				load.end()
				b.module.Clear()
				b.module.ResetCounters()
				if err := load.wrong.Load(); err != nil {
					t.Errorf("%s: %v", function, *err)
				}
			}
			if b.current() != id {
				t.Errorf("key_id became %s", b.current())
			}
			named := slices.Contains(functions, "C_EncryptInit")
			if log := b.log.String(); !strings.Contains(log, "has ended by itself") || named && !strings.Contains(log, "C_EncryptInit") {
				t.Errorf("the log does not say what died where:\n%s", log)
			}
		})
	}
}

// With a second token that holds the key, the death of the first one's library costs no request.
func TestLibraryDiesBesideAnotherToken(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 2 * time.Second })
	f.start()
	id := f.current()
	for range 5 {
		f.untilUsable(0, true)
		f.module.Die("C_Encrypt", faultp11.Segfault).Once()
		for range 20 {
			f.roundTrip(id)
		}
	}
	if n := f.module.Injected("C_Encrypt"); n < 5 {
		t.Errorf("it died %d times: this test proves nothing", n)
	}
}

// A request of which the library dies is tried twice, the second time with no other beside it; then it is refused, while
// others are served and have failed at most for a moment.
func TestDeadlyRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 2 * time.Second }).start()
	id := b.current()
	b.module.Die("C_SignInit", faultp11.Segfault).UntilCleared() // that nothing else here calls
	load := b.startLoad(id, 4)
	load.waitForGood(8)
	if _, err := b.set.MAC(t.Context(), id, []byte("deadly")); !errors.Is(err, envelope.ErrUnavailable) {
		t.Errorf("the first time: %v", err)
	}
	load.waitForGood(64)
	for range 3 {
		if _, err := b.set.MAC(t.Context(), id, []byte("deadly")); !errors.Is(err, envelope.ErrUnavailable) || !strings.Contains(err.Error(), "ended the PKCS#11 module twice") {
			t.Errorf("again: %v", err)
		}
	}
	if n := b.module.Injected("C_SignInit"); n != 2 {
		t.Errorf("it died %d times", n)
	}
	load.end()
	if err := load.wrong.Load(); err != nil {
		t.Error(*err)
	}
	b.module.Clear()
	if _, err := b.set.MAC(t.Context(), id, []byte("another")); err == nil || strings.Contains(err.Error(), "twice") {
		t.Errorf("another request: %v", err)
	}
	b.roundTrip(id)
}

// A library that aborts in C_Initialize costs its own token alone.
func TestLibraryDiesInInitialize(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, nil)
	f.module.Die("C_Initialize", faultp11.Abort).UntilCleared()
	f.run()
	problems := f.set.Connected(f.within(20 * time.Second))
	if problems[0] == nil || !strings.Contains(problems[0].Error(), "signal: aborted") || problems[1] != nil {
		t.Fatalf("%v", problems)
	}
	id := f.look().Current.ID
	f.servedBy(id, 1)
	f.module.Clear()
	f.untilUsable(0, true)
	f.servedBy(id, 0)
}

// Sessions that were open when a firewall forgot them hang, and new ones work: the token serves again soon after
// callTimeout, without a storm of logins.
func TestHalfOpenNetwork(t *testing.T) {
	t.Parallel()
	b := newBench(t, impatient).start()
	id := b.current()
	logins := b.module.Logins()
	b.module.HangCall("C_EncryptInit").Times(b.cfg.MaxSessions)
	start := time.Now()
	b.manyCallersEnd(id)
	b.eventually(10*time.Second, func() error { return b.ring.Exercise(t.Context()) })
	if took := time.Since(start); took > 2*b.cfg.CallTimeout+3*time.Second {
		t.Errorf("served again after %s", took)
	}
	if n := b.module.Logins() - logins; n > 2 {
		t.Errorf("%d logins", n)
	}
}

// manyCallersEnd asks with as many callers as there are sessions, and waits for their answers.
func (b *bench) manyCallersEnd(id envelope.KeyID) {
	done := make(chan struct{})
	for range b.cfg.MaxSessions {
		go func() {
			ctx, cancel := context.WithTimeout(b.t.Context(), 3*time.Second)
			defer cancel()
			_, _ = b.ring.Seal(ctx, id, make([]byte, 32))
			done <- struct{}{}
		}()
	}
	for range b.cfg.MaxSessions {
		<-done
	}
}

// A module that takes long to start, or to log in, is waited for.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *hsm.Config, cfg *hsm.TokenConfig) {
		impatient(c, cfg)
		cfg.ConnectTimeout = 20 * time.Second
	})
	b.module.ResetCounters()
	b.module.Delay("C_Initialize", 2*b.cfg.CallTimeout)
	b.module.Delay("C_Login", 3*b.cfg.CallTimeout/2)
	b.run()
	if err := b.set.Connected(b.within(20 * time.Second))[0]; err != nil {
		t.Fatal(err)
	}
	if n := b.module.Calls("C_Initialize"); n != 1 {
		t.Errorf("%d workers were started", n)
	}
}
