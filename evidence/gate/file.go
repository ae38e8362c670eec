package gate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
)

// maxFile bounds a report's file in bytes: one of a million objects has a few hundred thousand, one with every list at
// its limit a few million.
const maxFile = 32 << 20

// ErrNotEvidence: the file can be read and is not a whole report of a live etcd.
var ErrNotEvidence = errors.New("not evidence")

// fields must all be there: an older version's report, which could not say what it had left out, is no evidence.
func fields() []string {
	return []string{
		"time", "revision", "objects", "plaintext", "undecodable", "resources", "history", "sources", "restricted", "undecodableObjects", "findings",
	}
}

// File is the report of a file.
type File struct {
	Report *evidence.Report
	// Migration is what the file says of the migration that ended with the report; nil: it is of etcd report.
	Migration *migrate.Outcome
	Time      time.Time // when its reading began
	SHA256    string    // of the file's bytes, in hex
}

// Load reads the file that `etcd report -o json` or `etcd migrate -o json` wrote. Errors: the system's, or ErrNotEvidence with what is wrong.
func Load(path string) (*File, error) {
	text, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("reading the evidence %s: %w", path, err)
	}
	migration, reported, err := migrationOf(text)
	var report *evidence.Report
	var began time.Time
	if err == nil {
		report, began, err = parse(reported)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the evidence %s: %w: %w", path, ErrNotEvidence, err)
	}
	sum := sha256.Sum256(text)
	return &File{Report: report, Migration: migration, Time: began, SHA256: hex.EncodeToString(sum[:])}, nil
}

// migrationOf takes the report out of the outcome of a migration. Any other text is its own report, and parse says what is
// wrong with it.
func migrationOf(text []byte) (migration *migrate.Outcome, report []byte, err error) {
	var present map[string]json.RawMessage
	if json.Unmarshal(text, &present) != nil || present["requiredKey"] == nil {
		return nil, text, nil
	}
	for _, name := range []string{"servers", "failed", "interrupted", "dryRun", "report"} {
		if value, ok := present[name]; !ok || string(value) == "null" {
			return nil, nil, fmt.Errorf("it has no %q: the migration did not come to its end, or is of an older version", name)
		}
	}
	migration = &migrate.Outcome{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(migration); err != nil {
		return nil, nil, err
	}
	return migration, present["report"], nil
}

func read(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) //nolint:gosec // the operator names it; a FIFO must not hang
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	var text []byte
	if info.Size() <= maxFile {
		text, err = io.ReadAll(io.LimitReader(file, maxFile+1))
	}
	if err == nil && max(info.Size(), int64(len(text))) > maxFile {
		err = fmt.Errorf("%w: it has more than %d bytes", ErrNotEvidence, maxFile)
	}
	return text, err
}

// parse takes exactly what a report is: every field, none that is unknown, one JSON value, and numbers that agree.
func parse(text []byte) (*evidence.Report, time.Time, error) {
	fail := func(err error) (*evidence.Report, time.Time, error) { return nil, time.Time{}, err }
	var present map[string]json.RawMessage
	if err := json.Unmarshal(text, &present); err != nil {
		return fail(fmt.Errorf("it is not one JSON object: %w", err))
	}
	for _, name := range fields() {
		if value, ok := present[name]; !ok || string(value) == "null" {
			return fail(fmt.Errorf("it has no %q: it is not the JSON of etcd report, or of an older version's", name))
		}
	}
	report := &evidence.Report{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(report); err != nil {
		return fail(err)
	}
	began, err := time.Parse(time.RFC3339Nano, report.Time)
	if err != nil {
		return fail(fmt.Errorf("its time %q is not one", report.Time))
	}
	if err := errors.Join(hasSourceFields(present["sources"]), adds(report), isLive(report)); err != nil {
		return fail(err)
	}
	return report, began, nil
}

// adds checks that the sums are those of the parts: a report that was cut by hand, or joined from two, does not say
// what it seems to.
func adds(r *evidence.Report) error {
	var objects, plain, undecodable int64
	for _, resource := range r.Resources {
		sum := resource.Plaintext + resource.Undecodable
		for _, key := range resource.Keys {
			if key.Objects <= 0 {
				return fmt.Errorf("its numbers do not agree: %d objects under a key of %s", key.Objects, evidence.Printable(resource.Resource))
			}
			sum += key.Objects
		}
		if sum != resource.Total || resource.Plaintext < 0 || resource.Undecodable < 0 {
			return fmt.Errorf("its numbers do not agree: %s has %d objects, and its parts have %d", evidence.Printable(resource.Resource), resource.Total, sum)
		}
		objects, plain, undecodable = objects+resource.Total, plain+resource.Plaintext, undecodable+resource.Undecodable
	}
	if objects != r.Objects || plain != r.Plaintext || undecodable != r.Undecodable {
		return fmt.Errorf("its numbers do not agree: %d objects, and its resources have %d", r.Objects, objects)
	}
	return nil
}

// sourceFields must be in every source, for the same reason.
func sourceFields() []string { return []string{"unreadable", "clusterUIDs"} }

// hasSourceFields looks for them. The text is known to be a report.
func hasSourceFields(sources json.RawMessage) error {
	var all []map[string]json.RawMessage
	if err := json.Unmarshal(sources, &all); err != nil {
		return err
	}
	for _, source := range all {
		for _, name := range sourceFields() {
			if value, ok := source[name]; !ok || string(value) == "null" {
				return fmt.Errorf("a source of it has no %q: it is not the JSON of etcd report, or of an older version's", name)
			}
		}
	}
	return nil
}

// isLive checks that every source is an etcd that was running: a snapshot says nothing about now.
func isLive(r *evidence.Report) error {
	if len(r.Sources) == 0 {
		return errors.New("it names no source")
	}
	for _, source := range r.Sources {
		switch {
		case source.SHA256 != "" || source.Cluster == "":
			return fmt.Errorf("%s is not a live etcd: a report of a snapshot does not show the present state", evidence.Printable(source.Name))
		case source.Revision <= 0 || len(source.Prefixes) == 0:
			return fmt.Errorf("%s has no revision or no prefixes", evidence.Printable(source.Name))
		}
	}
	if len(r.History) > 0 {
		return errors.New("it has older revisions, as only a snapshot's report has")
	}
	if r.Revision != r.Sources[0].Revision {
		return fmt.Errorf("its revision %d is not that of its first source, %d", r.Revision, r.Sources[0].Revision)
	}
	return nil
}
