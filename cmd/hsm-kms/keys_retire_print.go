package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
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

// retiredOf is the JSON of a run.
func retiredOf(o retire.Options, r *retire.Result) retiredJSON {
	id, p, f := o.KeyID, r.Plan, r.Facts
	retired := retiredJSON{
		keyJSON:  keyJSON{KeyID: id.String(), Ring: id.Ring, Fingerprint: id.FingerprintHex(), Tokens: []string{}},
		Outcomes: append([]retire.Outcome{}, r.Outcomes...), Destroyed: r.Destroyed(), DryRun: o.DryRun, Refusals: p.Refusals, Warnings: p.Warnings,
		Accepted: p.Accepted, Rehearsed: p.Rehearsed,
	}
	if !p.Target.ID.IsZero() {
		retired.keyJSON = keyOf(p.Target)
	}
	if p.Whole {
		retired.Plan, retired.Planned = p.Hash(), &p.Content
	}
	if f.Etcd == nil {
		return retired
	}
	now := retireNowJSON{Time: f.Etcd.Time, Objects: f.Etcd.Objects, Sources: f.Etcd.Sources}
	if f.Evidence == nil {
		retired.Etcd = &now
		return retired
	}
	file := f.Evidence.Report
	retired.Evidence = &retireEvidenceJSON{
		File: o.EvidenceFile, SHA256: f.Evidence.SHA256, Time: file.Time, Objects: file.Objects, Sources: file.Sources,
		Now: now, Settle: p.Settled.String(), Snapshots: snapshotsSaid(f.Snapshots),
	}
	return retired
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
func (c *command) printChecks(o retire.Options, r *retire.Result) error {
	p := r.Plan
	for _, warning := range p.Warnings {
		fmt.Fprintln(c.errOut, "hsm-kms: warning:", evidence.Printable(warning))
	}
	retired := retiredOf(o, r)
	if c.structured() || retired.Evidence == nil && retired.Etcd == nil {
		return nil
	}
	w := &lines{out: c.out}
	w.add("Looked at for %s:", o.KeyID)
	if e := retired.Evidence; e != nil {
		w.add("  the ring: %s on %s; %s", p.Target.State, strings.Join(p.Target.Tokens, ", "), followed(p))
		for _, line := range e.checks() {
			w.add("  %s", line)
		}
	} else {
		w.add("  the ring: %s on %s; current from %s", p.Target.State, strings.Join(p.Target.Tokens, ", "), p.Target.Activation.UTC().Format(rfc3339Milli))
		w.add("  %s", retired.Etcd.check(""))
	}
	for _, accepted := range p.Accepted {
		w.add("  you vouch for: %s", accepted)
	}
	if p.Rehearsed {
		w.add("  rehearsed: refuseKeys of this machine's configuration names it")
	}
	return w.err
}

// followed says what took the place of the key.
func followed(p *retire.Plan) string {
	switch {
	case p.ReadOnly:
		return "it is only read, and API servers were seen to write under another ring"
	case p.Successor.IsZero():
		return "the key that followed it was current from an unknown time on"
	}
	return "the key that followed it was current from " + p.Successor.UTC().Format(rfc3339Milli)
}

// printRetired says for people what a run came to.
func (c *command) printRetired(o retire.Options, r *retire.Result) error {
	p, destroyed := r.Plan, r.Destroyed()
	w := &lines{out: c.out}
	switch {
	case p.Target.ID.IsZero():
		w.add("%s is on no token. Its destruction was begun before, and is complete.", p.KeyID)
	case o.DryRun:
		w.add("Nothing was destroyed: a dry run. %s would be destroyed on %s.\nThe plan is %s: with --plan and this hash, exactly that is done.",
			p.KeyID, strings.Join(p.Target.Tokens, ", "), p.Hash())
	default:
		w.add("Destroyed %s on %s.", p.KeyID, strings.Join(destroyed, ", "))
	}
	if p.Target.State == envelope.Retained && len(destroyed) > 0 {
		w.add("What is still under it, in backups that were not looked at, can never be read again.")
	}
	return w.err
}
