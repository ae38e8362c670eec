package hsm

import (
	"context"
	"log/slog"
	"regexp"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/throttle"
)

// The shortest and the longest pause between two logged episodes of a token whose connection comes and goes.
const (
	episodeInterval = 10 * time.Second
	episodeLongest  = 10 * time.Minute
)

// maxCauses bounds the causes that are logged in one episode.
const maxCauses = 16

// logDeduplicator limits the log lines about a token's connection. It works on episodes: the connection is dropped, it cannot
// be made again because of one or more causes, it is made again. Of a token that is lost and found every few seconds for an
// hour it logs ever fewer episodes, each of them whole. The others are logged at debug level, and counted. Token.mu guards it.
type logDeduplicator struct {
	episodes   throttle.Throttle
	suppressed bool            // this episode is logged at debug level only
	causes     map[string]bool // logged in this episode
}

func newLogDeduplicator() logDeduplicator {
	return logDeduplicator{episodes: throttle.Throttle{Interval: episodeInterval, Longest: episodeLongest}, causes: map[string]bool{}}
}

// dropped begins an episode.
func (d *logDeduplicator) dropped(log *slog.Logger, generation uint64, why string) {
	level := slog.LevelWarn
	pass, skipped := d.episodes.Allow(time.Now())
	d.suppressed = !pass
	switch {
	case why == shuttingDown, d.suppressed:
		level = slog.LevelDebug
	default:
		clear(d.causes)
	}
	log.Log(context.Background(), level, "connection to the token dropped", "generation", generation, "reason", why, "alsoDropped", skipped)
}

// replaced is told instead of dropped where nothing was wrong with the connection, and its successor serves already.
func (d *logDeduplicator) replaced(log *slog.Logger, generation uint64, why string) {
	log.Info("connection to the token replaced", "generation", generation, "reason", why)
}

// failed logs why there is no connection, once per cause.
func (d *logDeduplicator) failed(log *slog.Logger, err error) {
	cause := timeless(err)
	if d.causes[cause] || len(d.causes) >= maxCauses {
		return
	}
	d.causes[cause] = true
	d.suppressed = false
	log.Error("the token cannot be used; trying again until it can", "error", err, "hint", HintFor(err))
}

// connected ends an episode, or begins the first.
func (d *logDeduplicator) connected(log *slog.Logger, generation uint64, keys int) {
	level := slog.LevelInfo
	if d.suppressed {
		level = slog.LevelDebug
	}
	log.Log(context.Background(), level, "connected to the token", "generation", generation, "keys", keys)
}

// timeless is an error's text without the times in it, which differ from attempt to attempt.
func timeless(err error) string {
	return regexp.MustCompile(`\b[0-9][0-9.]*(ns|µs|ms|s|m|h)([0-9.]+(ms|s|m))*\b`).ReplaceAllString(err.Error(), "some time")
}
