package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// sayEvery is how often progress is told where there is no terminal.
const sayEvery = 30 * time.Second

// migrationWatch tells people on stderr how far it is. etcd is read while objects are rewritten, so many goroutines use it.
type migrationWatch struct {
	command *command
	bar     evidence.Progress // nil: no terminal
	wipe    func()

	mu        sync.Mutex // guards the fields below, and is held while bar and wipe are called
	began     time.Time  // of the rewriting
	printed   time.Time
	rewriting bool // then the reading beneath it is not shown
}

func (c *command) watchMigration() *migrationWatch {
	bar, wipe := c.progress()
	return &migrationWatch{command: c, bar: bar, wipe: wipe}
}

func (w *migrationWatch) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wipe()
}

// reading is told by etcd's source how far it is.
func (w *migrationWatch) reading(stage string, done, total int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bar != nil && !w.rewriting {
		w.bar(stage, done, total)
	}
}

// progress is told how far the rewriting is.
func (w *migrationWatch) progress(stage string, done, total int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.began.IsZero() {
		w.began, w.printed = now, now
	}
	w.rewriting = done < total
	stage += remaining(now.Sub(w.began), done, total)
	if w.bar != nil {
		w.bar(stage, done, total)
		return
	}
	if now.Sub(w.printed) >= sayEvery {
		w.printed = now
		fmt.Fprintf(w.command.errOut, "%s: %s of %s\n", stage, grouped(done), grouped(total))
	}
}

// say prints a line.
func (w *migrationWatch) say(text string) {
	w.clear()
	fmt.Fprintln(w.command.errOut, evidence.Printable(text))
}

// remaining is ", 3m20s left", from the pace so far; empty as long as there is none.
func remaining(elapsed time.Duration, done, total int64) string {
	if done < 10 || elapsed < time.Second || done >= total {
		return ""
	}
	left := time.Duration(float64(elapsed) / float64(done) * float64(total-done))
	return fmt.Sprintf(", %s left", roughly(left))
}

// roughly rounds to what an estimate can know.
func roughly(d time.Duration) time.Duration {
	switch {
	case d > time.Hour:
		return d.Round(time.Minute)
	case d > time.Minute:
		return d.Round(10 * time.Second)
	}
	return d.Round(time.Second)
}

// printMigration prints an outcome. Whatever came from etcd or an API server is made safe for a terminal.
func (c *command) printMigration(out *migrate.Outcome) error {
	if c.structured() {
		return c.json(out)
	}
	w := &lines{out: c.out}
	w.add("Required key: %s", evidence.Printable(out.RequiredKey))
	w.newer(out.Newer)
	w.add("")
	rows := [][]string{{" ", "API SERVER", "RESOURCE", "WRITES"}}
	for _, p := range out.Servers {
		rows = append(rows, proofRow(p, out.DryRun))
	}
	err := errors.Join(w.err, c.headed(rows))
	w.add("")
	rows = [][]string{{"RESOURCE", "OBJECTS", "NOT UNDER THE KEY"}}
	for _, r := range out.Resources {
		rows = append(rows, []string{evidence.Printable(r.Resource), grouped(r.Objects), grouped(r.Found)})
	}
	err = errors.Join(err, w.err, c.headed(rows))
	w.add("")
	if out.DryRun {
		w.add("dry run: %s would be rewritten, in about %s", counted(int(out.Found), "object"), roughly(time.Duration(out.Seconds*float64(time.Second))))
		return errors.Join(err, w.err)
	}
	w.add("%s rewritten, %s gone meanwhile, %s failed, in %s", counted(int(out.Rewritten), "object"), grouped(out.Gone), grouped(out.Failed),
		roughly(time.Duration(out.Seconds*float64(time.Second))))
	if len(out.Failures) > 0 {
		w.add("\nCould not be rewritten:")
		problems := make([]evidence.Problem, 0, maxShown)
		for _, f := range out.Failures[:min(maxShown, len(out.Failures))] {
			problems = append(problems, evidence.Problem{Key: f.Key, Reason: f.Reason})
		}
		w.problems(problems, out.Failed)
	}
	err = errors.Join(err, w.err)
	if out.Report != nil {
		w.add("")
		err = errors.Join(err, w.err, c.printReport(out.Report))
	}
	return err
}

func proofRow(p migrate.Proof, dryRun bool) []string {
	mark, writes := wrong, "nothing that was seen: "+p.Error
	switch {
	case p.Skipped && p.Error != "":
		mark, writes = " ", "(no API leads to it)"
	case p.Skipped:
		mark, writes = " ", "(there is no object to see it by)"
	case dryRun && p.Error == "":
		mark, writes = " ", "(to be proven)"
	case p.OK:
		mark, writes = " ", "under the key, as "+p.Writes
	case p.Behind != "":
		writes = p.Error
	case p.KeyID != "":
		writes = p.Writes + " " + p.KeyID
	case p.Error == "":
		writes = p.Writes
	}
	return []string{mark, evidence.Printable(p.Server), evidence.Printable(p.Resource), evidence.Printable(writes)}
}
