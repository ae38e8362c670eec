package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
)

// The trail beside audit.path, and the operations in it. A destruction that came to its end has an end with code OK.
const (
	retireTrailName = "keys-retire"
	retireBegin     = "keys.retire.begin"
	retireSnapshot  = "keys.retire.snapshot" // one for each that was looked at
	retireEnd       = "keys.retire.end"
)

// destroy removes the key from every token that holds it, with records in an audit trail of its own before and after.
// The first is on the disk before anything is destroyed: closing the trail flushes it.
func (r *retirement) destroy(ctx context.Context) error {
	if err := r.toTrail(r.recordBegin); err != nil {
		return fmt.Errorf("nothing was destroyed: %w", err)
	}
	outcomes, err := r.in.set.Destroy(ctx, r.id)
	for _, o := range outcomes {
		if o.Outcome == hsm.Destroyed {
			r.said.Destroyed = append(r.said.Destroyed, o.Token)
		}
	}
	code := codes.OK
	if err != nil {
		code = codes.Unavailable
		err = hint.Wrap(fmt.Errorf("destroying %s (done on: %s): %w", r.id, orNobody(r.said.Destroyed), err), "run the same command again: it goes on where it stopped")
	}
	trailErr := r.toTrail(func(record recorder) error { return record(retireEnd, code, strings.Join(r.said.Destroyed, ","), "") })
	if trailErr != nil {
		trailErr = hint.Wrap(fmt.Errorf("recording the end of the destruction of %s (done on: %s): %w", r.id, orNobody(r.said.Destroyed), trailErr),
			"mend what keeps the audit trail from being written, and run the same command again: it completes the record")
	}
	return errors.Join(err, trailErr)
}

// complete ends a destruction that was killed after the last token, before its end was on record.
func (r *retirement) complete() error {
	const text = "%s is on no token. Its destruction was begun before, and is complete."
	if r.flags.dryRun {
		return r.done(text, r.id)
	}
	unlock, err := lockKeys(r.cfg.StateDir)
	if err != nil {
		return r.against(err)
	}
	defer unlock()
	err = r.toTrail(func(record recorder) error {
		return record(retireEnd, codes.OK, "", "; on no token any more; begun before, and interrupted")
	})
	if err != nil {
		return err
	}
	return r.done(text, r.id)
}

func orNobody(tokens []string) string {
	if len(tokens) == 0 {
		return "no token"
	}
	return strings.Join(tokens, ", ")
}

// recorder writes one record; more follows who did it in the record's reason.
type recorder func(operation string, code codes.Code, object, more string) error

// toTrail opens the trail beside the plugin's for what write records, and flushes it to the disk; without audit.path
// there is none.
func (r *retirement) toTrail(write func(recorder) error) error {
	if r.cfg.Audit.Path == "" {
		return nil
	}
	writer, err := openTrailBeside(r.cfg, retireTrailName)
	if err != nil {
		return err
	}
	err = write(func(operation string, code codes.Code, object, more string) error {
		return writer.Record(audit.Record{
			Time: time.Now(), Operation: operation, KeyID: r.id.String(), Code: code.String(),
			Peer: ourselves(), Object: object, Reason: "by " + userName() + more,
		})
	})
	return errors.Join(err, writer.Close())
}

// recordBegin writes what is about to be destroyed and on which evidence, snapshots one by one: a record's length is bounded.
func (r *retirement) recordBegin(record recorder) error {
	more := ""
	if e := r.said.Evidence; e != nil {
		short := ""
		if r.flags.settle < gate.DefaultSettle {
			short = ", shorter than the default"
		}
		more = fmt.Sprintf("; settle %s%s; report of %s, SHA-256 %s, %s; now %s; %s", e.Settle, short, e.Time, e.SHA256, revisions(e.Sources), revisions(e.Now.Sources),
			counted(len(e.Snapshots), "snapshot"))
	}
	if err := record(retireBegin, codes.OK, strings.Join(r.version.Tokens, ","), more); err != nil {
		return err
	}
	if r.said.Evidence == nil {
		return nil
	}
	for _, s := range r.said.Evidence.Snapshots {
		if err := record(retireSnapshot, codes.OK, s.Name, fmt.Sprintf("; SHA-256 %s, revision %d", s.SHA256, s.Revision)); err != nil {
			return err
		}
	}
	return nil
}

// destruction is what the trail on this machine says of a key.
type destruction struct {
	begun, ended time.Time // zero: no such record; ended: with code OK, after begun
}

// maxTrailLine bounds a line of the trail in bytes; ours have less than 4 kB.
const maxTrailLine = 64 << 10

// destructions reads the trail of keys retire beside path. What cannot be read says nothing.
func destructions(path string) (map[string]destruction, error) {
	known := map[string]destruction{}
	if path == "" {
		return known, nil
	}
	file, err := os.OpenFile(audit.Beside(path, retireTrailName), os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hang
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
		case line.Operation == retireBegin:
			known[line.KeyID] = destruction{begun: line.Time}
		case line.Operation == retireEnd && line.Code == codes.OK.String():
			known[line.KeyID] = destruction{begun: known[line.KeyID].begun, ended: line.Time}
		}
	}
	if err := scanner.Err(); err != nil {
		return known, fmt.Errorf("reading the trail of keys retire: %w", err)
	}
	return known, nil
}

// judgeGone is about a key_id that no token holds: destroyed, by this machine's trail, or never there. A destruction
// that was begun and has no end on record is no refusal: complete writes it.
func (r *retirement) judgeGone() error {
	if len(r.said.Refusals) > 0 {
		return nil // nothing is known of the ring
	}
	known, err := destructions(r.cfg.Audit.Path)
	if err != nil {
		r.warn("%v", err)
	}
	is := known[r.id.String()]
	switch {
	case !is.ended.IsZero():
		r.refuse(hint.Wrap(fmt.Errorf("%w: %s is not in the ring: it was destroyed at %s, by the audit trail of this machine",
			envelope.ErrUnknownKey, r.id, is.ended.UTC().Format(time.RFC3339)), "see what is there with: hsm-kms keys list"))
	case is.begun.IsZero():
		r.refuse(hint.Wrap(fmt.Errorf("%w: %s is not in the ring", envelope.ErrUnknownKey, r.id), "see what is there with: hsm-kms keys list"))
	}
	return nil
}
