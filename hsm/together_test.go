package hsm_test

import (
	"context"
	"flag"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm"
)

var rounds = flag.Int("together", 8, "rounds of three plugins that are started together")

// Three plugins are started together on one SoftHSM folder, with three stateDirs, so that no lock is between them. Each
// login empties the token's file for an instant. That is no error of the token.
func TestPluginsStartedTogether(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(_ *hsm.Config, token *hsm.TokenConfig) { token.CallTimeout = 2 * time.Second })
	for round := range *rounds {
		var all sync.WaitGroup
		for range 3 {
			common, log := b.common, &logLines{}
			common.StateDir, common.Log = t.TempDir(), slog.New(slog.NewTextHandler(log, nil))
			all.Go(func() {
				set := hsm.Open(common, []hsm.TokenConfig{b.cfg})
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
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
