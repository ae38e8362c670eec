package hsm_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm"
)

// A start reads each key once, on as many sessions at once as it may have.
func TestStartReadsKeysTogether(t *testing.T) {
	t.Parallel()
	const keys = 9
	b := newBench(t, func(_ *hsm.Config, cfg *hsm.TokenConfig) {
		cfg.CallTimeout, cfg.ConnectTimeout = 30*time.Second, time.Minute
	})
	for i := 1; i < keys; i++ {
		b.generate(time.Now().Add(time.Duration(i) * time.Hour))
	}
	for _, tc := range []struct {
		maxSessions, given, together int
	}{
		{8, 0, 8},
		{3, 0, 4}, // and the admin session
		{1, 0, 2},
		{8, 3, 3}, // the token gives three
		{8, 2, 2},
	} {
		t.Run(fmt.Sprintf("maxSessions %d, the token gives %d", tc.maxSessions, tc.given), func(t *testing.T) {
			ctx := b.within(time.Minute)
			if err := b.module.WaitAlone(ctx); err != nil {
				t.Fatal(err)
			}
			b.cfg.MaxSessions = tc.maxSessions
			b.module.ResetCounters()
			b.module.MaxSessions(tc.given)
			release := b.module.Hang("C_EncryptInit")
			b.run()
			defer b.stop()
			if err := b.module.WaitHung(ctx, "C_EncryptInit", tc.together); err != nil {
				t.Fatal(err)
			}
			release()
			for _, err := range b.set.Connected(ctx) {
				if err != nil {
					t.Fatal(err)
				}
			}
			if n := b.module.MaxInFlightOf("C_EncryptInit"); n != tc.together {
				t.Errorf("%d keys were read at once, want %d", n, tc.together)
			}
			if err := b.ring.Refresh(ctx); err != nil {
				t.Fatal(err)
			}
			if n := len(b.ring.Advance().Versions); n != keys {
				t.Errorf("%d versions of %d", n, keys)
			}
			for fn, want := range map[string]int{
				"C_FindObjectsInit":   1,
				"C_GetAttributeValue": 2 * keys, // each: sizes, then values
				"C_EncryptInit":       keys + 2, // fingerprints, and two of the self-test
				"C_DecryptInit":       keys + 2 + 4,
			} {
				if n := b.module.Calls(fn); n != want {
					t.Errorf("%s: %d calls, want %d", fn, n, want)
				}
			}
			if n, most := b.module.MaxOpenSessions(), tc.maxSessions+1; n > most {
				t.Errorf("%d sessions were open, want at most %d", n, most)
			}
			if err := b.ring.Refresh(ctx); err != nil { // this one asks the token
				t.Fatal(err)
			}
			if n := b.module.Calls("C_FindObjectsInit"); n != 2 {
				t.Errorf("two readings made %d searches", n)
			}
		})
	}
}
