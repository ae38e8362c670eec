// Package daemon runs the plugin: it makes of the configuration the tokens, the ring, the socket, the audit trail, the metrics
// and the service, starts them in their order and ends them in the opposite one. Packages kmsplugin and hsm know nothing of each
// other. Each part runs its own goroutines; Run returns when all of them have ended.
//
// It depends on app, config, envelope, hsm, hsm/worker, kmsplugin, its parts audit, health, hold, metrics, socket and systemd, and on
// harden, hint and ownedfile.
package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/metrics"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
	"github.com/hsm-kms/hsm-kms/kmsplugin/systemd"
)

// Build is what the program was built from, for its metrics.
type Build struct{ Version, Commit string }

// Run runs the plugin until ctx ends, and logs to stderr.
func Run(ctx context.Context, cfg *config.Config, stderr io.Writer, build Build) error {
	out := newLogWriter(stderr)
	defer out.Close()
	log := newLogger(cfg.Logging, out)
	prepareProcess(ctx, cfg, log)
	refuse, err := app.RefusedKeys(cfg)
	if err != nil {
		return err
	}
	group, err := socketGroup(cfg)
	if err != nil {
		return err
	}
	count := metrics.New(build.Version, build.Commit)
	listener, found, release, err := listen(ctx, cfg, group, log, count)
	if err != nil {
		return err
	}
	defer release()
	defer func() { _ = listener.Close() }() // closed twice on the way that is well; only the first counts
	warnOfShutOut(cfg, log)
	trail, err := openTrail(ctx, cfg, log, count)
	if err != nil {
		return err
	}
	defer trail.close()
	rings, err := openRings(cfg, refuse, log, count)
	if err != nil {
		return err
	}
	stopTokens, err := startTokens(ctx, rings, cfg.OutageHold > 0, log)
	if err != nil {
		return err
	}
	defer stopTokens()
	readers := readersOf(rings[1:], cfg, log)
	all := together(rings)
	stand := newHold(cfg, all, trail, log, count)
	plugin := kmsplugin.New(kmsplugin.Options{
		Ring: all, Hold: stand, ReadRings: readers, Logger: log, StateDir: cfg.StateDir, Proven: rings[0].proven,
		ProbeInterval: cfg.ProbeInterval.Std(), RefreshInterval: cfg.RefreshInterval.Std(),
		// 0s is asked for, and is not "the default".
		WriteContinuation: max(cfg.WriteContinuation.Std(), time.Nanosecond),
		AllowedUIDs:       cfg.Socket.UIDs(), Group: group,
		Recorder: trail, Metrics: count,
	})
	observe(count, rings, readers)
	defer serveHTTP(ctx, cfg.HTTP.Address, count, plugin, found, log)()
	return plugin.Run(ctx, listener)
}

// prepareProcess sets what holds for the whole process, and says what is odd about the configuration.
func prepareProcess(ctx context.Context, cfg *config.Config, log *slog.Logger) {
	unix.Umask(0o077) // nothing that this process makes is for others, unless it says so file by file
	keepFromSwap(ctx, log)
	boundMemory()
	boundProcessors()
	for _, t := range cfg.AllTokens() {
		if _, unlisted := worker.Environment(os.Environ(), t.PassEnv); len(unlisted) > 0 {
			log.Warn("the module gets variables that a later release will not pass", "token", t.Name, "variables", unlisted,
				"hint", "name in tokens[].passEnv those that it needs; docs/configuration.md has the list of those that always pass")
		}
	}
	for _, warning := range cfg.Warnings() {
		log.Warn("configuration", "warning", warning)
	}
}

// serveHTTP serves metrics and health until it is stopped: an address that cannot be opened must not keep the plugin from
// serving. found reports whether clients can find the socket.
func serveHTTP(ctx context.Context, address string, count *metrics.Metrics, plugin *kmsplugin.Plugin, found func() bool, log *slog.Logger) (stop func()) {
	ready := func() bool { words, _, _ := plugin.Health(); return words == "ok" && found() }
	handler := count.Handler(func() bool { return plugin.Live() == nil }, ready, func() bool { return plugin.ReadProblem() == nil }, plugin.OnHold)
	return metrics.Keep(ctx, address, handler, log)
}

// listen takes the socket that systemd passed, or makes the configured one and keeps it until ctx ends. found reports whether
// clients can find it; release removes what was made.
func listen(ctx context.Context, cfg *config.Config, group *uint32, log *slog.Logger, count *metrics.Metrics) (l net.Listener, found func() bool, release func(), err error) {
	activated, err := systemd.Listener()
	if err != nil {
		return nil, nil, nil, err
	}
	if activated != nil {
		return activated, func() bool { return true }, func() {}, nil
	}
	made, err := socket.Listen(socket.Config{Path: cfg.Socket.Path, Mode: cfg.Socket.Mode.Perm(), Group: group, PodVolume: cfg.AllowPodVolumes})
	if err != nil {
		return nil, nil, nil, err
	}
	count.ObserveSocket(made)
	var keeping sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	keeping.Go(func() { made.Keep(ctx, log) })
	return made, made.Listening, func() {
		stop()
		keeping.Wait()
		if err := made.Release(); err != nil {
			log.Warn("the socket was not removed", "error", err)
		}
	}, nil
}

// warnOfShutOut logs which of the allowed peers the socket's mode keeps out.
func warnOfShutOut(cfg *config.Config, log *slog.Logger) {
	if uids := cfg.Socket.ShutOut(ownedfile.Lstat); len(uids) > 0 {
		log.Warn("the socket's owner and mode keep allowed peers out", "socket", cfg.Socket.Path, "uids", uids, "hint", config.ShutOutHint)
	}
}

// socketGroup is the group that may connect; nil: none.
func socketGroup(cfg *config.Config) (*uint32, error) {
	gid, named, err := cfg.Socket.GID()
	if err != nil || !named {
		return nil, err
	}
	return &gid, nil
}

func newLogger(cfg config.Logging, out io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo // the configuration admits only names that slog knows
	}
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "text" {
		return slog.New(slog.NewTextHandler(out, options))
	}
	return slog.New(slog.NewJSONHandler(out, options))
}
