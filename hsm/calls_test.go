package hsm_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// PKCS#11 calls are what an operation costs where the HSM is behind a network. docs/performance.md has these numbers.
func TestCallsOfOperations(t *testing.T) {
	t.Parallel()
	for _, profile := range []envelope.Profile{envelope.AESGCM, envelope.HMACKDF} {
		t.Run(profile.String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(common *hsm.Config, cfg *hsm.TokenConfig) { common.Profile, cfg.MaxSessions = profile, 1 })
			b.generate(time.Now())
			b.module.ResetCounters()
			count := func(what string, most bool, want int, do func() error) {
				t.Helper()
				if err := do(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := int(b.module.TotalCalls())
				if got != want && (!most || got > want || got == 0) {
					t.Errorf("%s: %d calls, want %d (at most: %t)", what, got, want, most)
				}
				b.module.ResetCounters()
			}
			const keys, forAKey, forAProbe = 2, 6, 4
			count("a connection to a ring of two keys", true, 45+forAKey*keys, func() error {
				b.run()
				err := b.set.Connected(b.within(20 * time.Second))[0]
				b.eventually(20*time.Second, func() error { // those that read the ring are closed after the start
					if n := b.module.OpenSessions(); n > 2 {
						return fmt.Errorf("%d sessions are open", n)
					}
					return nil
				})
				return err
			})
			count("the first reading, which is that of the connection", false, 0, func() error { return b.ring.Refresh(t.Context()) })
			count("reading a ring of two keys", false, 4+2*keys, func() error { return b.ring.Refresh(t.Context()) })
			count("the first probe, which may open a session", true, forAProbe+1, func() error { return b.ring.Exercise(t.Context()) })
			count("a probe", false, forAProbe, func() error { return b.ring.Exercise(t.Context()) })
			var sealed []byte
			count("a seal", false, 2, func() (err error) {
				sealed, err = b.ring.Seal(t.Context(), b.current(), make([]byte, 32))
				return err
			})
			count("an open", false, 2, func() error {
				_, err := b.ring.Open(t.Context(), b.current().String(), sealed)
				return err
			})
		})
	}
}
