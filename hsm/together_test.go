package hsm_test

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm"
)

// Three plugins are started together on one SoftHSM folder, with three stateDirs, so that no lock is between them. Each
// login empties the token's file for an instant. That is no error of the token. Eight rounds, or HSM_KMS_TOGETHER (100).
func TestPluginsStartedTogether(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	rounds := 8
	if text := os.Getenv("HSM_KMS_TOGETHER"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	// Slow is no error here, and a busy machine is slow.
	b := newBench(t, func(_ *hsm.Config, token *hsm.TokenConfig) { token.CallTimeout = 20 * time.Second })
	for round := range rounds {
		var all sync.WaitGroup
		for range 3 {
			common, log := b.common, &logLines{}
			common.StateDir, common.Log = t.TempDir(), slog.New(slog.NewTextHandler(log, nil))
			all.Go(func() {
				set := hsm.Open(common, []hsm.TokenConfig{b.cfg})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var running sync.WaitGroup
				running.Go(func() { set.Run(ctx) })
				problem := set.Connected(ctx)[0]
				if problem != nil || strings.Contains(log.String(), "level=ERROR") {
					t.Errorf("round %d: %v\n%s", round, problem, log)
				}
				cancel()
				running.Wait()
			})
		}
		all.Wait()
	}
}
