package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// judgeEvidence reads what was named and etcd, and notes what speaks against destroying a key that was current.
func (r *retirement) judgeEvidence(ctx context.Context, readEtcd bool) error {
	r.said.Rehearsed = slices.Contains(r.cfg.RefuseKeys, r.id.String())
	if r.cfg.Audit.Path == "" {
		r.refuse(hint.Wrap(errors.New("audit.path is empty in the configuration, and without a record no key that was current is destroyed"), "set audit.path"))
	}
	if r.flags.evidence == "" {
		r.refuse(hint.Wrap(fmt.Errorf("%s was current: data in etcd, or in a backup, may need it, and there is no evidence to the contrary", r.id),
			"keep it, which costs nothing; or make evidence, and name it a day later: hsm-kms etcd report -o json > report.json; --evidence report.json"))
		return nil
	}
	if !r.said.Rehearsed {
		r.warn("refuseKeys of this machine's configuration does not name %s: its end was not rehearsed here", r.id)
	}
	if r.flags.settle < gate.DefaultSettle {
		r.warn("--settle %s is shorter than %s: an API server that still has a DEK of this key may write under it, and what it writes is lost for ever",
			r.flags.settle, gate.DefaultSettle)
	}
	if len(r.flags.named) == 0 {
		r.warn("no --snapshot is named: no backup was looked at, and one that needs %s can never be restored", r.id)
	}
	if ok, err := r.readFiles(ctx); err != nil || !ok {
		return err
	}
	if readEtcd || r.own == nil {
		own, err := r.report(ctx, &r.flags.etcdFlags)
		if err != nil {
			return err
		}
		r.own = own
	}
	r.said.Evidence = r.evidenceSaid()
	judged := gate.Case{
		KeyID: r.id.String(), Successor: r.successor, Others: r.others, Settle: r.flags.settle, FileName: r.flags.evidence,
		File: r.file, Own: r.own, Snapshots: r.snapshots,
	}
	r.said.Refusals = append(r.said.Refusals, judged.Judge()...)
	return nil
}

// readFiles reads the report and the snapshots, once. A file that is no evidence is a refusal, and ok is false.
func (r *retirement) readFiles(ctx context.Context) (ok bool, err error) {
	if r.file != nil {
		return true, nil
	}
	file, err := gate.Load(r.flags.evidence)
	if errors.Is(err, gate.ErrNotEvidence) {
		r.refuse(hint.Wrap(err, "make one with: hsm-kms etcd report -o json"))
		return false, nil
	}
	if err != nil {
		return false, hint.Wrap(err, "give the file that this wrote: hsm-kms etcd report -o json > report.json")
	}
	for _, path := range r.flags.named {
		report, err := r.report(ctx, &etcdFlags{snapshots: []string{path}, prefixes: r.flags.prefixes})
		if err != nil {
			return false, err
		}
		r.snapshots = append(r.snapshots, report)
	}
	r.file = file
	return true, nil
}

// report is a bare etcd report.
func (r *retirement) report(ctx context.Context, f *etcdFlags) (*evidence.Report, error) {
	return r.buildReport(ctx, &reportFlags{etcdFlags: *f}, evidence.ReportOptions{})
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

func (r *retirement) evidenceSaid() *retireEvidenceJSON {
	said := &retireEvidenceJSON{
		File: r.flags.evidence, SHA256: r.file.SHA256, Time: r.file.Report.Time, Objects: r.file.Report.Objects, Sources: r.file.Report.Sources,
		Now:    retireNowJSON{Time: r.own.Time, Objects: r.own.Objects, Sources: r.own.Sources},
		Settle: r.flags.settle.String(), Snapshots: []retireSnapshotJSON{},
	}
	for _, report := range r.snapshots {
		past := int64(0)
		for _, resource := range report.History {
			past += resource.Total
		}
		source := report.Sources[0]
		said.Snapshots = append(said.Snapshots, retireSnapshotJSON{source.Name, source.SHA256, source.Revision, report.Objects, past})
	}
	return said
}

// checks are what was looked at, line by line, for people.
func (e *retireEvidenceJSON) checks() []string {
	lines := []string{fmt.Sprintf("%s (SHA-256 %s): %s at %s, %s", evidence.Printable(e.File), e.SHA256, counted(int(e.Objects), "object"), e.Time, revisions(e.Sources))}
	apart := ""
	then, err := time.Parse(time.RFC3339Nano, e.Time)
	now, nowErr := time.Parse(time.RFC3339Nano, e.Now.Time)
	if err == nil && nowErr == nil {
		apart = fmt.Sprintf(", %s later", now.Sub(then).Round(time.Second))
	}
	lines = append(lines, fmt.Sprintf("etcd now%s: %s, %s", apart, counted(int(e.Now.Objects), "object"), revisions(e.Now.Sources)))
	for _, s := range e.Snapshots {
		lines = append(lines, fmt.Sprintf("%s (SHA-256 %s): %s and %s at revision %d", evidence.Printable(s.Name), s.SHA256,
			counted(int(s.Objects), "object"), counted(int(s.Past), "older revision"), s.Revision))
	}
	return lines
}

// revisions names each etcd and how far it was read.
func revisions(sources []evidence.Reading) string {
	parts := make([]string, 0, len(sources))
	for _, s := range sources {
		parts = append(parts, fmt.Sprintf("revision %d of cluster %s", s.Revision, evidence.Printable(s.Cluster)))
	}
	return strings.Join(parts, ", ")
}
