package hsm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// A call that hangs is abandoned in time; further ones are refused at once while too many hang; threads stay
// bounded; when the module answers again, so does the token, without a new login.
func TestHang(t *testing.T) {
	t.Parallel()
	for _, function := range []string{"C_EncryptInit", "C_Encrypt", "C_OpenSession", "C_CloseSession"} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, impatient).start()
			id := b.current()
			logins := b.module.Calls("C_Login")
			if function == "C_CloseSession" {
				b.module.Fail("C_Encrypt", 0x30).UntilCleared()
			}
			release := b.module.Hang(function)
			if function == "C_OpenSession" {
				b.module.DropSessions()
			}
			b.eventually(20*time.Second, func() error { // on a busy machine the first callers may go before enough calls hang
				b.manyCallersInTime(id)
				if b.set.Generation() != 0 {
					return errors.New("a token whose calls hang counts as one that can be used")
				}
				return nil
			})
			start := time.Now()
			_, err := b.ring.Seal(t.Context(), id, make([]byte, 32))
			if !errors.Is(err, envelope.ErrUnavailable) || time.Since(start) >= b.cfg.CallTimeout {
				t.Errorf("with the circuit open: %v after %s", err, time.Since(start))
			}
			if n := b.module.InFlight(); n > b.cfg.MaxSessions+1 {
				t.Errorf("%d calls hang at once", n)
			}
			b.module.ClearFunction("C_Encrypt")
			release()
			b.eventually(10*time.Second, func() error { return b.ring.Exercise(t.Context()) })
			if got := b.current(); got != id {
				t.Errorf("key_id became %s", got)
			}
			if n := b.module.Calls("C_Login") - logins; n > 1 {
				t.Errorf("%d logins to recover", n)
			}
			b.stop()
			if n := b.module.OpenSessions(); n != 0 {
				t.Errorf("%d sessions left open", n)
			}
		})
	}
}

// manyCallersInTime asks with more callers than there are sessions, and wants each to be answered within the
// call time-out and a little.
func (b *bench) manyCallersInTime(id envelope.KeyID) {
	b.t.Helper()
	const callers = 64
	type answer struct {
		err  error
		took time.Duration
	}
	answers := make(chan answer, callers)
	for range callers {
		go func() {
			start := time.Now()
			_, err := b.ring.Seal(b.t.Context(), id, make([]byte, 32))
			answers <- answer{err, time.Since(start)}
		}()
	}
	for range callers {
		a := <-answers
		if a.err == nil {
			b.t.Error("an operation succeeded while the function hung")
		}
		if a.took > b.cfg.CallTimeout+2*time.Second {
			b.t.Errorf("a caller waited for %s: %v", a.took, a.err)
		}
	}
}

// The caller's own deadline is kept, and is told as what it is.
func TestCallersDeadline(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil).start()
	id := b.current()
	release := b.module.Hang("C_Encrypt")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := b.ring.Seal(ctx, id, make([]byte, 32))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > b.cfg.CallTimeout {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

// More callers than may wait are refused at once.
func TestTooManyWaiting(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(c *hsm.Config, cfg *hsm.TokenConfig) {
		impatient(c, cfg)
		c.MaxWaiting = 4
	}).start()
	id := b.current()
	release := b.module.Hang("C_Encrypt")
	defer release()
	busy := make(chan error, 64)
	for range 64 {
		go func() {
			_, err := b.ring.Seal(t.Context(), id, make([]byte, 32))
			busy <- err
		}()
	}
	refused := 0
	for range 64 {
		if errors.Is(<-busy, envelope.ErrBusy) {
			refused++
		}
	}
	if want := 64 - b.cfg.MaxSessions - 4; refused < want {
		t.Errorf("%d callers were refused, wanted at least %d", refused, want)
	}
}
