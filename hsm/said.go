package hsm

import (
	"context"
	"log/slog"
	"regexp"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/throttle"
)

// The pauses between two stories about a token whose connection comes and goes, and while it goes on.
const (
	storyInterval = 10 * time.Second
	storyLongest  = 10 * time.Minute
)

// maxCauses bounds the causes that are said in one story.
const maxCauses = 16

// said is what the log was told of a token's connection. A story is: dropped, why it cannot be made again, connected. A token
// that is lost and found every few seconds for an hour has ever fewer stories told, and each of those as a whole; the others
// are told at debug level, and counted. Token.mu guards it.
type said struct {
	stories throttle.Throttle
	untold  bool            // the story at hand is not told
	causes  map[string]bool // said in it
}

func newSaid() said {
	return said{stories: throttle.Throttle{Interval: storyInterval, Longest: storyLongest}, causes: map[string]bool{}}
}

// dropped begins a story.
func (s *said) dropped(log *slog.Logger, generation uint64, why string) {
	level := slog.LevelWarn
	pass, skipped := s.stories.Allow(time.Now())
	s.untold = !pass
	switch {
	case why == shuttingDown, s.untold:
		level = slog.LevelDebug
	default:
		clear(s.causes)
	}
	log.Log(context.Background(), level, "connection to the token dropped", "generation", generation, "reason", why, "alsoDropped", skipped)
}

// failed says why there is no connection, unless that was said.
func (s *said) failed(log *slog.Logger, err error) {
	cause := timeless(err)
	if s.causes[cause] || len(s.causes) >= maxCauses {
		return
	}
	s.causes[cause] = true
	s.untold = false
	log.Error("the token cannot be used; trying again until it can", "error", err, "hint", AdviceFor(err))
}

// connected ends a story, or begins the first.
func (s *said) connected(log *slog.Logger, generation uint64, keys int) {
	level := slog.LevelInfo
	if s.untold {
		level = slog.LevelDebug
	}
	log.Log(context.Background(), level, "connected to the token", "generation", generation, "keys", keys)
}

// timeless is an error's text without the times in it, which differ from attempt to attempt.
func timeless(err error) string {
	return regexp.MustCompile(`\b[0-9][0-9.]*(ns|µs|ms|s|m|h)([0-9.]+(ms|s|m))*\b`).ReplaceAllString(err.Error(), "some time")
}
