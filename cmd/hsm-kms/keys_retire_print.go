package main

import (
	"fmt"
	"strings"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// retiredJSON is the outcome for programs: the key as in keys list, and what became of it. Fields and names are a
// contract.
type retiredJSON struct {
	keyJSON
	Destroyed []string            `json:"destroyed"` // the tokens on which it was destroyed now
	DryRun    bool                `json:"dryRun"`
	Refusals  []gate.Refusal      `json:"refusals"` // empty: nothing speaks against it
	Warnings  []string            `json:"warnings"`
	Rehearsed bool                `json:"rehearsed"`          // refuseKeys of this machine's configuration names it
	Evidence  *retireEvidenceJSON `json:"evidence,omitempty"` // of a key that was current
}

func (r *retirement) warn(format string, args ...any) {
	r.said.Warnings = append(r.said.Warnings, fmt.Sprintf(format, args...))
}

// printChecks tells people what was looked at, before anything is asked or destroyed.
func (r *retirement) printChecks() error {
	for _, warning := range r.said.Warnings {
		fmt.Fprintln(r.errOut, "hsm-kms: warning:", evidence.Printable(warning))
	}
	if r.output == "json" || r.said.Evidence == nil {
		return nil
	}
	w := &lines{out: r.out}
	w.add("Looked at for %s:", r.id)
	w.add("  the ring: %s on %s; the key that followed it was current from %s", r.version.State, strings.Join(r.version.Tokens, ", "), atOrUnknown(r))
	for _, line := range r.said.Evidence.checks() {
		w.add("  %s", line)
	}
	if r.said.Rehearsed {
		w.add("  rehearsed: refuseKeys of this machine's configuration names it")
	}
	return w.err
}

func atOrUnknown(r *retirement) string {
	if r.successor.IsZero() {
		return "an unknown time on"
	}
	return r.successor.UTC().Format(rfc3339Milli)
}

// jsonIfWanted prints the outcome with -o json.
func (r *retirement) jsonIfWanted() error {
	if r.output != "json" {
		return nil
	}
	return r.json(r.said)
}

// done ends a run that came to its end: JSON, or a sentence.
func (r *retirement) done(format string, args ...any) error {
	err := r.say(format, args...)
	if err != nil && len(r.said.Destroyed) > 0 { // whoever reads stdout has gone: at least the error must say it
		return hint.Wrap(fmt.Errorf("%s was destroyed on %s; saying so: %w", r.id, strings.Join(r.said.Destroyed, ", "), err), "nothing is left to do; see it with: hsm-kms keys list")
	}
	return err
}

func (r *retirement) say(format string, args ...any) error {
	if r.output == "json" {
		return r.jsonIfWanted()
	}
	w := &lines{out: r.out}
	w.add(format, args...)
	if r.version.State == envelope.Retained && len(r.said.Destroyed) > 0 {
		w.add("What is still under it, in backups that were not looked at, can never be read again.")
	}
	return w.err
}
