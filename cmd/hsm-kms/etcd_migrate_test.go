package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

func TestRemaining(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		elapsed     time.Duration
		done, total int64
		want        string
	}{
		{time.Minute, 5, 1000, ""}, // too few to tell
		{100 * time.Millisecond, 50, 1000, ""},
		{20 * time.Second, 1000, 1000, ""},
		{20 * time.Second, 1000, 2234, ", 25s left"},
		{20 * time.Second, 1000, 10_000, ", 3m0s left"},
		{20 * time.Second, 1000, 1_000_000, ", 5h33m0s left"},
	} {
		if got := remaining(c.elapsed, c.done, c.total); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Without a terminal, progress is a line now and then; what an API server says cannot reach the terminal as it is.
func TestMigrationWatch(t *testing.T) {
	t.Parallel()
	var errOut bytes.Buffer
	w := (&command{errOut: &errOut}).watchMigration()
	w.reading("reading etcd", 1, 2)
	for i := range int64(1000) {
		w.progress(migrate.Stage, i, 1000)
	}
	w.began, w.printed = time.Now().Add(-time.Minute), time.Now().Add(-time.Minute)
	w.progress(migrate.Stage, 500, 1000)
	w.say("waiting: \x1b[2Jserver")
	if got, want := errOut.String(), "rewriting, 1m0s left: 500 of 1,000\nwaiting: \\x1b[2Jserver\n"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

func outcomeFor(change func(o *migrate.Outcome)) *migrate.Outcome {
	o := &migrate.Outcome{
		RequiredKey: "ring/2/new", Found: 3, Rewritten: 3, Report: &evidence.Report{Objects: 3},
		Servers: []migrate.Proof{
			{Server: "https://a", Resource: "secrets", OK: true, Writes: "kms:v2:hsm-kms", KeyID: "ring/2/new"},
			{Server: "https://a", Resource: "widgets.example.com", Skipped: true},
		},
	}
	change(o)
	return o
}

// verdictCase is an outcome, and what is made of it.
type verdictCase struct {
	change func(o *migrate.Outcome)
	err    error
	code   int
	says   string
	hint   string
	shows  string
}

func verdictCases() map[string]verdictCase {
	left := func(o *migrate.Outcome) {
		o.Report.Findings = []evidence.Finding{{Resource: "secrets", Problem: "under another key: x", Objects: 2}}
	}
	return map[string]verdictCase{
		"clean":   {func(*migrate.Outcome) {}, nil, 0, "", "", "3 objects rewritten, 0 gone meanwhile, 0 failed"},
		"dry run": {func(o *migrate.Outcome) { o.DryRun, o.Seconds, o.Report = true, 20000, nil }, nil, 0, "", "", "dry run: 3 objects would be rewritten, in about 5h33m0s"},
		"left":    {left, nil, 1, "1 finding: 2 objects of secrets: under another key: x", "docs/evidence.md", "under another key"},
		"failed": {func(o *migrate.Outcome) {
			left(o)
			o.Failed, o.Failures = 1, []migrate.Failure{{Key: "/registry/secrets/\x1b[2J", Reason: "denied\x1b"}}
		}, nil, 1, `1 object could not be rewritten, the first: /registry/secrets/\x1b[2J: denied\x1b`, "run it again", `!  /registry/secrets/\x1b[2J: denied\x1b`},
		"interrupted": {func(o *migrate.Outcome) { o.Interrupted, o.Report = true, nil }, context.Canceled, 1, "stopped with 3 objects rewritten", "run it again", "3 objects rewritten"},
		"lost":        {func(o *migrate.Outcome) { o.Report = nil }, migrate.ErrLost, 2, "no API server answers", "", "3 objects rewritten"},
		"other key": {func(o *migrate.Outcome) {
			o.Report = nil
			o.Servers[0] = migrate.Proof{Server: "https://a", Resource: "secrets", Writes: "kms:v2:hsm-kms", KeyID: "ring/1/\x1bold"}
		}, migrate.ErrUnproven, 1, `not every API server writes under the required key: https://a writes secrets under another key: ring/1/\x1bold`, "hsm-kms status", `kms:v2:hsm-kms ring/1/\x1bold`},
		"plain text": {func(o *migrate.Outcome) {
			o.Report = nil
			o.Servers[0] = migrate.Proof{Server: "https://a", Resource: "secrets", Writes: "plain text"}
		}, migrate.ErrUnproven, 1, "https://a writes secrets as plain text", "EncryptionConfiguration", "plain text"},
		"renamed": {func(o *migrate.Outcome) {
			o.Report = nil
			o.Servers[0] = migrate.Proof{Server: "https://a", Resource: "secrets", Writes: "kms:v2:a", KeyID: "ring/2/new", Expected: "kms:v2:b\x1b"}
		}, migrate.ErrUnproven, 1, `https://a writes secrets as kms:v2:a, and the EncryptionConfiguration has kms:v2:b\x1b`, "EncryptionConfiguration", "kms:v2:a ring/2/new"},
		"aggregated": {func(o *migrate.Outcome) {
			o.Report, o.DryRun = nil, true
			o.Servers[0] = migrate.Proof{Server: "the Service ns/api", Resource: "widgets.example.com", Behind: "ns/api", Error: "behind it"}
		}, migrate.ErrUnproven, 1, "the Service ns/api, widgets.example.com: behind it", "--group-server", "behind it"},
		"proven": {func(o *migrate.Outcome) {}, nil, 0, "", "", "under the key, as kms:v2:hsm-kms"},
		"newer": {func(o *migrate.Outcome) {
			o.Newer = []evidence.NewerKey{{KeyID: "ring/3/next", State: "deferred", From: "2026-01-02T03:04:05Z"}}
		}, nil, 0, "", "", "note: a newer key is deferred (not on every token; was to become current at 2026-01-02T03:04:05Z): ring/3/next"},
		"not an answer": {func(o *migrate.Outcome) { o.Report = nil }, migrate.ErrBadAnswer, 2, "not an API server's answer", "", "3 objects rewritten"},
		"forbidden": {func(o *migrate.Outcome) {
			o.Report = nil
			o.Servers[0] = migrate.Proof{Server: "https://a", Resource: "secrets", Error: "forbidden\x1b"}
		}, migrate.ErrUnproven, 1, `https://a, secrets: forbidden\x1b`, "may do what", `nothing that was seen: forbidden\x1b`},
	}
}

// Each outcome has an exit code, words and advice of its own, and a table that is safe to show.
func TestVerdict(t *testing.T) {
	t.Parallel()
	for name, tc := range verdictCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := outcomeFor(tc.change)
			err := verdict(out, tc.err)
			code := exitUsage
			if err == nil {
				code = exitOK
			} else if app.IsFinding(err) {
				code = exitFinding
			}
			if code != tc.code || err != nil && (!strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\x1b")) || !strings.Contains(hint.Of(err), tc.hint) {
				t.Errorf("exit code %d: %v; hint %q", code, err, hint.Of(err))
			}
			var table bytes.Buffer
			if err := (&command{out: &table}).printMigration(out); err != nil || !strings.Contains(table.String(), tc.shows) || strings.Contains(table.String(), "\x1b") {
				t.Errorf("%v: %q", err, table.String())
			}
		})
	}
}
