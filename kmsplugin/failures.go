package kmsplugin

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/internal/throttle"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// The pauses between two log lines about requests that fail with one code. An outage has its own lines, from the probe.
const (
	failureLogInterval = time.Minute
	failureLogLongest  = time.Hour
	failuresOver       = 5 * time.Minute // without one, they are over
)

// maxWords bounds how many different answers of one code are said at once in one spell. Ours are few, and fixed; gRPC's own
// hold numbers.
const maxWords = 8

// failures logs requests that fail: the first of a spell with each answer, then one after a minute, and after 4, 16 and
// each 60 more, each with the number of those between; and in the end how many there were. At debug level, every one.
type failures struct {
	logger *slog.Logger
	byCode [codes.Unauthenticated + 1]spell
}

// spell is a time in which requests fail with one code.
type spell struct {
	mu          sync.Mutex // guards the fields below
	throttle    *throttle.Throttle
	words       []string // the answers that were said
	count       int      // 0: there is none
	began, last time.Time
	over        *time.Timer
}

func newFailures(logger *slog.Logger) *failures {
	return &failures{logger: logger}
}

// note logs the cause, which the peer is not told. A request that its peer gave up is no failure of ours to warn of.
func (f *failures) note(ctx context.Context, op *Operation, class problem.Class, err error) {
	level := slog.LevelDebug
	words := class.Words
	if class.Code == codes.NotFound {
		words += " " + quoted(op.KeyID) // the reader has to know which key is missing
	}
	pass, skipped := f.spell(class.Code).note(words, time.Now(), func() { f.end(class.Code) })
	switch {
	case pass && class.Code == codes.Canceled:
		level = slog.LevelInfo
	case pass:
		level = slog.LevelWarn
	}
	if !f.logger.Enabled(ctx, level) {
		return
	}
	f.logger.Log(ctx, level, "request failed", "operation", op.Operation, "code", class.Code.String(), "requestUID", plain(op.RequestUID),
		"keyID", plain(op.KeyID), "pid", op.Peer.PID, "uid", op.Peer.UID, "error", err, "hint", class.Hint, "alsoFailed", skipped)
}

func (f *failures) spell(code codes.Code) *spell { return &f.byCode[min(int(code), len(f.byCode)-1)] }

// end ends a spell whose last failure is long enough ago, and says how many there were.
func (f *failures) end(code codes.Code) {
	if count, lasted := f.spell(code).end(time.Now(), failuresOver); count > 1 {
		f.logger.Info("requests no longer fail this way", "code", code.String(), "failed", count, "for", lasted.Round(time.Second).String())
	}
}

// stop ends all spells, when nothing is served any more.
func (f *failures) stop() {
	for i := range f.byCode {
		if count, lasted := f.byCode[i].end(time.Now(), 0); count > 1 {
			f.logger.Info("requests failed until the end", "code", codes.Code(i).String(), "failed", count, "for", lasted.Round(time.Second).String())
		}
	}
}

// note counts a failure, and reports whether it is said, and how many were not before it. over is called when the spell may
// have ended.
func (s *spell) note(words string, now time.Time, over func()) (pass bool, skipped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == 0 {
		s.began = now
		s.throttle = &throttle.Throttle{Interval: failureLogInterval, Longest: failureLogLongest}
		s.over = time.AfterFunc(failuresOver, over)
	}
	s.count++
	s.last = now
	if !slices.Contains(s.words, words) && len(s.words) < maxWords {
		s.words = append(s.words, words)
		s.throttle.Restart()
	}
	return s.throttle.Allow(now)
}

// end ends the spell if it was quiet for that long, and tells what it was; else it sees to being called again.
func (s *spell) end(now time.Time, quiet time.Duration) (count int, lasted time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == 0 {
		return 0, 0
	}
	if left := quiet - now.Sub(s.last); left > 0 {
		s.over.Reset(left)
		return 0, 0
	}
	s.over.Stop()
	count, lasted = s.count, s.last.Sub(s.began)
	s.count, s.words = 0, nil
	return count, lasted
}
