package retire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// TrailName names the trail beside audit.path. A destruction that came to its end has an end with code OK.
const TrailName = "keys-retire"

// The operations in the trail.
const (
	opBegin    = "keys.retire.begin"
	opAccepted = "keys.retire.accepted" // one for each thing that the operator answers for
	opSnapshot = "keys.retire.snapshot" // one for each that was looked at
	opEnd      = "keys.retire.end"
)

// Trail is where a destruction is recorded.
type Trail struct {
	Open func() (*audit.Writer, error) // nil: there is no trail
	Peer audit.Peer                    // this process
	User string                        // that runs it
}

// recorder writes one record; more follows the user in the record's reason.
type recorder func(operation string, code codes.Code, object, more string) error

// write opens the trail for what records writes, and flushes it to the disk.
func (t Trail) write(p *Plan, records func(recorder) error) error {
	if t.Open == nil {
		return nil
	}
	writer, err := t.Open()
	if err != nil {
		return err
	}
	err = records(func(operation string, code codes.Code, object, more string) error {
		return writer.Record(context.Background(), audit.Record{ // it waits for the disk: without its record nothing is destroyed
			Time: time.Now(), Operation: operation, KeyID: p.KeyID, Code: code.String(), Peer: t.Peer, Object: object, Reason: "by " + t.User + more,
		})
	})
	return errors.Join(err, writer.Close())
}

// begin records what is about to be destroyed and on which grounds, in several records: the length of one is bounded.
func (p *Plan) begin(record recorder, g Grounds) error {
	more := fmt.Sprintf("; %s; plan %s", p.State, p.Hash())
	if e := g.Evidence; e != nil {
		short := ""
		if g.Settle < gate.DefaultSettle {
			short = ", shorter than the default"
		}
		more += fmt.Sprintf("; settle %s%s; report of %s, SHA-256 %s, %s", g.Settle, short, e.Report.Time, e.SHA256, Revisions(e.Report.Sources))
	}
	if g.Etcd != nil {
		more += "; now " + Revisions(g.Etcd.Sources)
	}
	if g.Evidence != nil {
		more += fmt.Sprintf("; snapshots: %d", len(g.Snapshots))
	}
	if err := record(opBegin, codes.OK, strings.Join(p.Target.Tokens, ","), more); err != nil {
		return err
	}
	for _, accepted := range p.Accepted {
		if err := record(opAccepted, codes.OK, accepted, ""); err != nil {
			return err
		}
	}
	for _, s := range g.Snapshots {
		source := s.Sources[0]
		if err := record(opSnapshot, codes.OK, source.Name, fmt.Sprintf("; SHA-256 %s, revision %d", source.SHA256, source.Revision)); err != nil {
			return err
		}
	}
	return nil
}

// Revisions names each etcd and how far it was read.
func Revisions(sources []evidence.Reading) string {
	parts := make([]string, 0, len(sources))
	for _, s := range sources {
		parts = append(parts, fmt.Sprintf("revision %d of cluster %s", s.Revision, evidence.Printable(s.Cluster)))
	}
	return strings.Join(parts, ", ")
}

// Destruction is what the trail on this machine says of a key.
type Destruction struct {
	Begun, Ended time.Time // zero: no such record; Ended: with code OK, after Begun
}

// maxTrailLine bounds a line of the trail in bytes; ours have less than 4 kB.
const maxTrailLine = 64 << 10

// Destructions reads the trail of keys retire beside auditPath. What cannot be read says nothing.
func Destructions(auditPath string) (map[string]Destruction, error) {
	known := map[string]Destruction{}
	if auditPath == "" {
		return known, nil
	}
	file, err := audit.OpenToRead(audit.Beside(auditPath, TrailName))
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return known, fmt.Errorf("reading the trail of keys retire: %w", err)
	}
	defer func() { _ = file.Close() }()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, maxTrailLine)
	for scanner.Scan() {
		var line struct {
			Time                   time.Time
			Operation, KeyID, Code string
		}
		if json.Unmarshal(scanner.Bytes(), &line) != nil {
			continue // torn by a crash: the record after it says so
		}
		switch {
		case line.Operation == opBegin:
			known[line.KeyID] = Destruction{Begun: line.Time}
		case line.Operation == opEnd && line.Code == codes.OK.String():
			known[line.KeyID] = Destruction{Begun: known[line.KeyID].Begun, Ended: line.Time}
		}
	}
	if err := scanner.Err(); err != nil {
		return known, fmt.Errorf("reading the trail of keys retire: %w", err)
	}
	return known, nil
}
