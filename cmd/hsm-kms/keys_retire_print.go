package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// retiredJSON is the outcome for programs: the key as in keys list, and what became of it. Fields and names are a
// contract.
type retiredJSON struct {
	keyJSON
	Plan      string              `json:"plan"`              // hash; empty: there is no whole plan
	Planned   *retire.Content     `json:"planned,omitempty"` // what the hash is made of
	Outcomes  []retire.Outcome    `json:"outcomes"`          // of each token, once something was tried
	Destroyed []string            `json:"destroyed"`         // the tokens on which it was destroyed now
	DryRun    bool                `json:"dryRun"`
	Refusals  []gate.Refusal      `json:"refusals"` // empty: nothing speaks against it
	Warnings  []string            `json:"warnings"`
	Accepted  []string            `json:"accepted"`           // what the operator answers for
	Rehearsed bool                `json:"rehearsed"`          // refuseKeys of this machine's configuration names it
	Evidence  *retireEvidenceJSON `json:"evidence,omitempty"` // of a key that was current
	Etcd      *retireNowJSON      `json:"etcd,omitempty"`     // what was read now, of a pending key
}

// retireEvidenceJSON is what was looked at. Fields and names are a contract.
type retireEvidenceJSON struct {
	File      string               `json:"file"`
	SHA256    string               `json:"sha256"` // of the file
	Time      string               `json:"time"`   // of the file's report
	Objects   int64                `json:"objects"`
	Sources   []evidence.Reading   `json:"sources"`
	Now       retireNowJSON        `json:"now"` // of this command's own report
	Settle    string               `json:"settle"`
	Snapshots []retireSnapshotJSON `json:"snapshots"`
}

type retireNowJSON struct {
	Time    string             `json:"time"`
	Objects int64              `json:"objects"`
	Sources []evidence.Reading `json:"sources"`
}

type retireSnapshotJSON struct {
	Name     string `json:"name"`
	SHA256   string `json:"sha256"`
	Revision int64  `json:"revision"`
	Objects  int64  `json:"objects"`
	Past     int64  `json:"past"` // older revisions
}

// saidOf is the JSON of a plan of which nothing was carried out yet.
func (r *retirement) saidOf(p *retire.Plan, f retire.Facts) retiredJSON {
	id := r.request.KeyID
	said := retiredJSON{
		keyJSON:  keyJSON{KeyID: id.String(), Ring: id.Ring, Fingerprint: id.FingerprintHex(), Tokens: []string{}},
		Outcomes: []retire.Outcome{}, Destroyed: []string{}, DryRun: r.flags.dryRun, Refusals: p.Refusals, Warnings: p.Warnings,
		Accepted: p.Accepted, Rehearsed: p.Rehearsed,
	}
	if !p.Target.ID.IsZero() {
		said.keyJSON = keyOf(p.Target)
	}
	if p.Whole {
		said.Plan, said.Planned = p.Hash(), &p.Content
	}
	if f.Etcd == nil {
		return said
	}
	now := retireNowJSON{Time: f.Etcd.Time, Objects: f.Etcd.Objects, Sources: f.Etcd.Sources}
	if f.Evidence == nil {
		said.Etcd = &now
		return said
	}
	file := f.Evidence.Report
	said.Evidence = &retireEvidenceJSON{
		File: r.flags.evidence, SHA256: f.Evidence.SHA256, Time: file.Time, Objects: file.Objects, Sources: file.Sources,
		Now: now, Settle: r.flags.settle.String(), Snapshots: snapshotsSaid(f.Snapshots),
	}
	return said
}

func snapshotsSaid(reports []*evidence.Report) []retireSnapshotJSON {
	all := []retireSnapshotJSON{}
	for _, report := range reports {
		past := int64(0)
		for _, resource := range report.History {
			past += resource.Total
		}
		source := report.Sources[0]
		all = append(all, retireSnapshotJSON{source.Name, source.SHA256, source.Revision, report.Objects, past})
	}
	return all
}

// checks are what was looked at, line by line, for people.
func (e *retireEvidenceJSON) checks() []string {
	lines := []string{fmt.Sprintf("%s (SHA-256 %s): %s at %s, %s", evidence.Printable(e.File), e.SHA256, counted(int(e.Objects), "object"), e.Time, retire.Revisions(e.Sources))}
	apart := ""
	then, err := time.Parse(time.RFC3339Nano, e.Time)
	now, nowErr := time.Parse(time.RFC3339Nano, e.Now.Time)
	if err == nil && nowErr == nil {
		apart = fmt.Sprintf(", %s later", now.Sub(then).Round(time.Second))
	}
	lines = append(lines, e.Now.check(apart))
	for _, s := range e.Snapshots {
		lines = append(lines, fmt.Sprintf("%s (SHA-256 %s): %s and %s at revision %d", evidence.Printable(s.Name), s.SHA256,
			counted(int(s.Objects), "object"), counted(int(s.Past), "older revision"), s.Revision))
	}
	return lines
}

func (n *retireNowJSON) check(apart string) string {
	return fmt.Sprintf("etcd now%s: %s, %s", apart, counted(int(n.Objects), "object"), retire.Revisions(n.Sources))
}

// printChecks prints what was looked at, for people, before anything is asked or destroyed.
func (r *retirement) printChecks(p *retire.Plan) error {
	for _, warning := range p.Warnings {
		fmt.Fprintln(r.errOut, "hsm-kms: warning:", evidence.Printable(warning))
	}
	if r.output == "json" || r.said.Evidence == nil && r.said.Etcd == nil {
		return nil
	}
	w := &lines{out: r.out}
	w.add("Looked at for %s:", r.request.KeyID)
	if e := r.said.Evidence; e != nil {
		w.add("  the ring: %s on %s; the key that followed it was current from %s", p.Target.State, strings.Join(p.Target.Tokens, ", "), atOrUnknown(p))
		for _, line := range e.checks() {
			w.add("  %s", line)
		}
	} else {
		w.add("  the ring: %s on %s; current from %s", p.Target.State, strings.Join(p.Target.Tokens, ", "), p.Target.Activation.UTC().Format(rfc3339Milli))
		w.add("  %s", r.said.Etcd.check(""))
	}
	for _, accepted := range p.Accepted {
		w.add("  you answer for: %s", accepted)
	}
	if p.Rehearsed {
		w.add("  rehearsed: refuseKeys of this machine's configuration names it")
	}
	return w.err
}

func atOrUnknown(p *retire.Plan) string {
	if p.Successor.IsZero() {
		return "an unknown time on"
	}
	return p.Successor.UTC().Format(rfc3339Milli)
}

// refused prints the refusals, if there are any, and is then the error that the command ends with.
func (r *retirement) refused(p *retire.Plan) error {
	if len(p.Refusals) == 0 {
		return nil
	}
	if err := errors.Join(r.printChecks(p), r.jsonIfWanted()); err != nil {
		return err
	}
	first := p.Refusals[0]
	if len(p.Refusals) == 1 {
		return app.Finding(hint.Wrap(errors.New(first.Reason), first.Hint))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s is not destroyed, for %d reasons:", p.KeyID, len(p.Refusals))
	for _, refusal := range p.Refusals {
		fmt.Fprintf(&text, "\n  %s", refusal.Reason)
		if refusal.Hint != "" && refusal.Hint != first.Hint {
			fmt.Fprintf(&text, "\n    (%s)", refusal.Hint)
		}
	}
	return app.Finding(hint.Wrap(errors.New(text.String()), first.Hint))
}

// against ends the command with one reason that came up last. Another error than a finding stays what it is.
func (r *retirement) against(err error) error {
	if !app.IsFinding(err) {
		return err
	}
	r.said.Refusals = append(r.said.Refusals, gate.Refusal{Reason: err.Error(), Hint: app.Hint(err)})
	return errors.Join(r.jsonIfWanted(), err)
}

// jsonIfWanted prints the outcome with -o json.
func (r *retirement) jsonIfWanted() error {
	if r.output != "json" {
		return nil
	}
	return r.json(r.said)
}

// done ends a run that came to its end: JSON, or a sentence.
func (r *retirement) done(p *retire.Plan, format string, args ...any) error {
	err := r.say(p, format, args...)
	if err != nil && len(r.said.Destroyed) > 0 { // the reader of stdout has gone: at least the error must say it
		return hint.Wrap(fmt.Errorf("%s was destroyed on %s; saying so: %w", p.KeyID, strings.Join(r.said.Destroyed, ", "), err), "nothing is left to do; see it with: hsm-kms keys list")
	}
	return err
}

func (r *retirement) say(p *retire.Plan, format string, args ...any) error {
	if r.output == "json" {
		return r.jsonIfWanted()
	}
	w := &lines{out: r.out}
	w.add(format, args...)
	if p.Target.State == envelope.Retained && len(r.said.Destroyed) > 0 {
		w.add("What is still under it, in backups that were not looked at, can never be read again.")
	}
	return w.err
}
