package hsm_test

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm"
)

// A token that has fewer sessions than maxSessions, by its own limit or because other programs hold them: callers wait for those
// that there are, none fails, and the connection stays. When there are more again they are used.
func TestFewerSessionsThanMaxSessions(t *testing.T) {
	t.Parallel()
	for _, working := range []int{1, 2, 5} {
		t.Run(strconv.Itoa(working), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 5 * time.Second }).start()
			const forLogin = 1
			b.eventually(b.cfg.CallTimeout, func() error { // those that read the ring are closed after the start
				if n := b.module.OpenSessions(); n > forLogin+1 {
					return fmt.Errorf("%d sessions are open", n)
				}
				return nil
			})
			b.module.ResetCounters() // the making of the key has its own sessions
			b.module.MaxSessions(working + forLogin)
			b.module.DelayAll(3 * time.Millisecond) // shorter ones the Go runtime may make one after the other
			logins := b.module.Logins()
			b.encryptTogether(16, 5)
			if n := b.module.MaxOpenSessions(); n > working+forLogin {
				t.Errorf("%d sessions at most, and the token has %d", n, working+forLogin)
			}
			if n := b.module.Logins() - logins; n != 0 {
				t.Errorf("the connection was given up: %d logins", n)
			}
			b.module.MaxSessions(0)
			if err := b.ring.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.module.DelayAll(0)
			release := b.module.Hang("C_Encrypt")
			defer release()
			done := make(chan struct{})
			go func() {
				defer close(done)
				b.encryptTogether(16, 1)
			}()
			b.eventually(b.cfg.CallTimeout, func() error {
				if n := b.module.OpenSessions(); n != b.cfg.MaxSessions+forLogin {
					return fmt.Errorf("%d sessions now that the token has more, want %d", n, b.cfg.MaxSessions+forLogin)
				}
				return nil
			})
			release()
			<-done
		})
	}
}

// encryptTogether has so many clients encrypt so often each, and none may fail.
func (b *bench) encryptTogether(clients, times int) {
	b.t.Helper()
	id := b.current()
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for range times {
				if _, err := b.ring.Seal(b.t.Context(), id, make([]byte, 32)); err != nil {
					b.t.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
}
