package kmsplugin

import (
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// lines are those of the log, and how many failures they tell of.
func (l *logBuffer) lines() (lines []string, told int) {
	for line := range strings.Lines(l.String()) {
		lines = append(lines, line)
		if strings.Contains(line, "request failed") {
			told++
		}
		if also := regexp.MustCompile(`alsoFailed=(\d+)`).FindStringSubmatch(line); also != nil {
			n, _ := strconv.Atoi(also[1])
			told += n
		}
	}
	return lines, told
}

// An outage of an hour, in which a request fails every second, is a handful of lines: and they tell when it began, that it
// goes on, when it was over, and how many failed.
func TestAnHourOfFailures(t *testing.T) {
	t.Parallel()
	for name, every := range map[string]time.Duration{"many": time.Second, "few": 2 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				logs := &logBuffer{}
				f := newFailures(logs.logger())
				away := fmt.Errorf("token a: %w", envelope.ErrUnavailable)
				failed := 0
				for begin := time.Now(); time.Since(begin) < time.Hour; time.Sleep(every) {
					f.note(t.Context(), &Operation{Operation: OperationDecrypt}, problem.Of(away), away)
					failed++
				}
				during, told := logs.lines()
				if len(during) > 5 || len(during) < 3 || told > failed || told < failed/4 {
					t.Errorf("%d lines that tell of %d of %d:\n%s", len(during), told, failed, logs)
				}
				time.Sleep(2 * failuresOver)
				lines, _ := logs.lines()
				last := lines[len(lines)-1]
				if len(lines) != len(during)+1 || !strings.Contains(last, fmt.Sprintf("failed=%d", failed)) || !strings.Contains(last, "no longer") {
					t.Errorf("in the end:\n%s", logs)
				}
				time.Sleep(24 * time.Hour)
				if again, _ := logs.lines(); len(again) != len(lines) {
					t.Errorf("afterwards:\n%s", logs)
				}
				f.note(t.Context(), &Operation{}, problem.Of(away), away)
				if again, _ := logs.lines(); len(again) != len(lines)+1 || !strings.Contains(again[len(lines)], "alsoFailed=0") {
					t.Errorf("the next outage:\n%s", logs)
				}
				f.stop() // one failure that was said needs no sum
				if again, _ := logs.lines(); len(again) != len(lines)+1 {
					t.Errorf("the end:\n%s", logs)
				}
			})
		})
	}
}

// Which key is missing is news, and whether it is not there or refused decides what to do. What a peer says of itself can be
// searched for as it is, and does no harm.
func TestFailuresNameKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		logs := &logBuffer{}
		f := newFailures(slog.New(slog.NewJSONHandler(logs, nil)))
		unknown := fmt.Errorf("%w: x", envelope.ErrUnknownKey)
		refused := fmt.Errorf("%w: x %w: y", envelope.ErrUnknownKey, envelope.ErrKeyRefused)
		for range 10 {
			f.note(t.Context(), &Operation{RequestUID: "5f2c-1", KeyID: "ring/a/1"}, problem.Of(refused), refused)
			f.note(t.Context(), &Operation{RequestUID: "u\n\x1b[31m\u202e", KeyID: "ring/b/2"}, problem.Of(unknown), unknown)
		}
		f.stop()
		lines := strings.Split(strings.TrimSpace(logs.String()), "\n")
		if len(lines) != 3 {
			t.Fatalf("%d lines:\n%s", len(lines), logs)
		}
		for i, want := range [][]string{
			{`"requestUID":"5f2c-1"`, `"keyID":"ring/a/1"`, `"hint":"if refuseKeys`},
			{`"requestUID":"\"u\\n\\x1b[31m\\u202e\""`, `"keyID":"ring/b/2"`, `"hint":"copy the key`},
		} {
			for _, text := range want {
				if !strings.Contains(lines[i], text) {
					t.Errorf("line %d lacks %s: %s", i, text, lines[i])
				}
			}
		}
	})
}

// Another cause is said at once, also under the same code, but not without bound; and what was not said is at the end.
func TestFailuresOfAnotherKind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		logs := &logBuffer{}
		f := newFailures(logs.logger())
		for range 10 {
			for _, err := range []error{envelope.ErrPINRefused, envelope.ErrRingEmpty, envelope.ErrUnavailable} {
				f.note(t.Context(), &Operation{}, problem.Of(err), err)
			}
		}
		if lines, _ := logs.lines(); len(lines) != 3 {
			t.Errorf("%d lines:\n%s", len(lines), logs)
		}
		for i := range 100 {
			f.note(t.Context(), &Operation{}, problem.Class{Code: codes.ResourceExhausted, Words: fmt.Sprint(i)}, envelope.ErrBusy)
		}
		if lines, _ := logs.lines(); len(lines) != 3+maxWords {
			t.Errorf("%d lines:\n%s", len(lines), logs)
		}
		f.stop()
		if n := strings.Count(logs.String(), "until the end"); n != 3 || !strings.Contains(logs.String(), "failed=100") {
			t.Errorf("the end:\n%s", logs)
		}
	})
}
