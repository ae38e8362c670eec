package daemon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/metrics"
)

// absentAfter is that of FORMAT.md, section 6. A command takes a token for absent that does not answer it; a plugin stays,
// and a connection that is being made, or made again, is no absence. It is longer than the slowest module takes to load.
const absentAfter = 5 * time.Minute

// firstAttemptWait is how long serve waits for the tokens before it serves without them: long enough to tell
// a mistake in the configuration from an HSM that is slow today.
const firstAttemptWait = 2 * time.Second

// nextAfter is when the last token is asked beside the others where a hold stands in after hold.Budget: 0.8 s before.
const nextAfter = 700 * time.Millisecond

// keyRing is one ring of the configuration, and its tokens.
type keyRing struct {
	*envelope.Ring
	set    *hsm.Set
	proven health.Proven
	read   *config.ReadRing // nil: it is the one that is written under
}

// openRings prepares the ring that is written under, and after it those that are only read. Nothing is started.
func openRings(cfg *config.Config, refuse []envelope.KeyID, log *slog.Logger, count *metrics.Metrics) ([]keyRing, error) {
	var rings []keyRing
	for _, name := range cfg.RingNames() {
		of, read, err := cfg.ForRing(name)
		if err != nil {
			return nil, err
		}
		common, tokens, files, err := app.RingHSM(of, read)
		if err != nil {
			return nil, err
		}
		common.Log, common.Observer = log, count
		if cfg.OutageHold > 0 {
			common.NextAfter = nextAfter
		}
		if read != nil {
			common.Log = log.With("readRing", name)
			if files != nil {
				common.Log.Error("a read ring is not served before a person acts", "error", files, "hint", cmp.Or(app.Hint(files), "correct the file")+"; then restart the plugin, but not while it is on its outage hold")
			}
		}
		r := keyRing{set: hsm.Open(common, tokens), read: read}
		if read == nil {
			if r.proven, err = health.LoadProven(cfg.StateDir, name); err != nil {
				log.Warn("the last proven key_id is not known", "error", err)
			}
		}
		r.Ring = envelope.NewRing(envelope.RingConfig{
			Name: name, Profile: common.Profile, Refuse: refuse, Floor: r.proven.Key, ReadOnly: read != nil,
			Grace: cfg.DeferGrace.Std(), AbsentAfter: absentAfter,
		}, r.set)
		rings = append(rings, r)
	}
	return rings, nil
}

// startTokens starts to keep the tokens of all rings connected and waits for the first attempts of the ring that is written
// under. Only what a restart cannot cure of that one is an error: a read ring must not keep the plugin from serving the others,
// nor keep it waiting. stay: not even that is, because the process must not end for the sake of a token.
func startTokens(ctx context.Context, rings []keyRing, stay bool, log *slog.Logger) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	var stops []func()
	for _, r := range rings {
		stops = append(stops, r.set.Start(ctx))
		if r.read != nil || stay {
			telling.Go(func() { tellUnusable(ctx, r, log) })
		}
	}
	stop = func() {
		cancel()
		var stopping sync.WaitGroup
		for _, end := range stops {
			stopping.Go(end)
		}
		stopping.Wait()
		telling.Wait()
	}
	waitCtx, cancelWait := context.WithTimeout(ctx, firstAttemptWait)
	defer cancelWait()
	for _, problem := range rings[0].set.Connected(waitCtx) {
		if errors.Is(problem, hsm.ErrConfiguration) && !stay {
			stop()
			return nil, problem
		}
	}
	return stop, nil
}

// tellUnusable logs what a restart cannot cure of a ring, when each of its tokens has been tried once.
func tellUnusable(ctx context.Context, r keyRing, log *slog.Logger) {
	for _, problem := range r.set.Connected(ctx) {
		if errors.Is(problem, hsm.ErrConfiguration) {
			log.Error("a token cannot be used before a person acts", "ring", r.Name(), "error", problem, "hint", app.Hint(problem))
		}
	}
}

func readersOf(read []keyRing, cfg *config.Config, log *slog.Logger) []*health.Reader {
	var readers []*health.Reader
	for _, r := range read {
		readers = append(readers, health.NewReader(health.ReaderConfig{
			Name: r.Name(), Ring: r.Ring, Retiring: r.read.Retiring, RefreshInterval: cfg.RefreshInterval.Std(), Logger: log,
		}))
	}
	return readers
}

// together are all rings as one: the first is written under.
func together(rings []keyRing) *envelope.Rings {
	var read []*envelope.Ring
	for _, r := range rings[1:] {
		read = append(read, r.Ring)
	}
	return envelope.NewRings(rings[0].Ring, read...)
}

func observe(count *metrics.Metrics, rings []keyRing, readers []*health.Reader) {
	tokens := map[string][]envelope.Token{}
	for _, r := range rings {
		tokens[r.Name()] = r.set.Members()
	}
	count.ObserveRing(rings[0].Advance)
	count.ObserveTokens(tokens)
	if len(readers) > 0 {
		metrics.ObserveReadRings(count, readers)
	}
}
