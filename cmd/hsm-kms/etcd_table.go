package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// maxShown bounds how many objects a table names; JSON has more.
const maxShown = 20

// wrong marks a line that a person must look at.
const wrong = "!"

// printReport prints a report. Whatever came from etcd is made safe for a terminal.
func (c *command) printReport(r *evidence.Report) error {
	if c.structured() {
		return c.json(r)
	}
	w := &lines{out: c.out}
	for _, source := range r.Sources {
		w.add("%s at revision %d", evidence.Printable(source.Name), source.Revision)
	}
	w.add("%s: %s in plain text, %s undecodable\n", counted(int(r.Objects), "object"), grouped(r.Plaintext), grouped(r.Undecodable))
	err := errors.Join(w.err, c.headed(resourceRows(r.Resources)))
	if len(r.History) > 0 {
		w.add("\nOlder revisions and deleted objects that are still in the file, and come back with a restore:\n")
		err = errors.Join(err, w.err, c.headed(resourceRows(r.History)))
	}
	if len(r.UndecodableObjects) > 0 {
		w.add("\nUndecodable:")
		w.problems(r.UndecodableObjects, r.Undecodable)
	}
	w.names(r.Names)
	if r.Required != nil {
		w.add("\nRequired of %s: %s", evidence.Printable(strings.Join(r.Required.Resources, ", ")), evidence.Printable(r.Required.KeyID))
		w.newer(r.Required.Newer)
	}
	if len(r.Findings) > 0 {
		w.add("\nFindings:")
		for _, f := range r.Findings {
			w.add("%s  %s", wrong, describe(f))
		}
	}
	w.notes(r.Sources)
	return errors.Join(err, w.err)
}

// resourceRows has a line for each key of each resource; those that are plain text throughout, as nearly all of a
// cluster's are meant to be, share one at the end. Secrets never do.
func resourceRows(resources []evidence.Resource) [][]string {
	rows := [][]string{{" ", "RESOURCE", "OBJECTS", "UNDER", "KEY ID", "DEKS"}}
	var plain, plainObjects int64
	for _, r := range resources {
		if r.Plaintext == r.Total && r.Resource != "secrets" {
			plain++
			plainObjects += r.Total
			continue
		}
		name := evidence.Printable(r.Resource)
		add := func(mark string, objects int64, under, keyID, deks string) {
			rows = append(rows, []string{mark, name, grouped(objects), under, keyID, deks})
			name = ""
		}
		for _, key := range r.Keys {
			deks := ""
			if key.DEKs > 0 {
				deks = grouped(key.DEKs)
			}
			add(" ", key.Objects, evidence.Printable(key.Provider), evidence.Printable(key.KeyID), deks)
		}
		if r.Plaintext > 0 {
			add(wrong, r.Plaintext, "PLAIN TEXT", "", "")
		}
		if r.Undecodable > 0 {
			add(wrong, r.Undecodable, "UNDECODABLE", "", "")
		}
	}
	if plain > 0 {
		rows = append(rows, []string{" ", fmt.Sprintf("(%s)", counted(int(plain), "other resource")), grouped(plainObjects), "plain text", "", ""})
	}
	return rows
}

// lines writes lines and keeps the first error.
type lines struct {
	out io.Writer
	err error
}

func (l *lines) add(format string, args ...any) {
	if l.err != nil {
		return
	}
	if _, err := fmt.Fprintf(l.out, format+"\n", args...); err != nil {
		l.err = fmt.Errorf("writing output: %w", err)
	}
}

// problems names the first objects of a list of which there are total.
func (l *lines) problems(problems []evidence.Problem, total int64) {
	for _, p := range problems[:min(maxShown, len(problems))] {
		l.add("%s  %s: %s", wrong, evidence.Printable(p.Key), evidence.Printable(p.Reason))
	}
	if more := max(total, int64(len(problems))) - maxShown; more > 0 {
		l.add("%s  and %s more: -o json names the first %s", wrong, grouped(more), grouped(evidence.MaxNamed))
	}
}

func (l *lines) notes(sources []evidence.Reading) {
	first := true
	for _, source := range sources {
		for _, note := range source.Notes {
			if first {
				l.add("")
				first = false
			}
			l.add("note: %s", strings.TrimSpace(evidence.Printable(note)))
		}
	}
}

// names says which keys have several provider names.
func (l *lines) names(keys []evidence.KeyNames) {
	for _, key := range keys {
		l.add("\nnote: one key has several provider names, %s: %s", evidence.Printable(strings.Join(key.Providers, ", ")), evidence.Printable(key.KeyID))
	}
}

// newer names the keys that will follow the current one.
func (l *lines) newer(keys []evidence.NewerKey) {
	for _, key := range keys {
		when := "becomes current at"
		if key.State == "deferred" {
			when = "not on every token; was to become current at"
		}
		l.add("note: a newer key is %s (%s %s): %s", key.State, when, key.From, evidence.Printable(key.KeyID))
	}
}
