package daemon

import (
	"log/slog"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold"
	"github.com/hsm-kms/hsm-kms/kmsplugin/metrics"
)

// newHold makes the outage hold that the configuration asks for; nil: it is off.
func newHold(cfg *config.Config, rings *envelope.Rings, t *trail, log *slog.Logger, count *metrics.Metrics) *hold.Hold {
	if cfg.OutageHold == 0 {
		return nil
	}
	timeout := cfg.Tokens[0].CallTimeout
	for _, token := range cfg.Tokens {
		timeout = min(timeout, token.CallTimeout)
	}
	h := hold.New(hold.Config{
		Ring: rings, StateDir: cfg.StateDir, Limit: cfg.OutageHold.Std(), CallTimeout: timeout.Std(), Logger: log, Record: t.event,
	})
	count.ObserveHold(h.State)
	return h
}
