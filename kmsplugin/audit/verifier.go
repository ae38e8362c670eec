package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// verifier goes over the lines of a chain.
type verifier struct {
	result      Result
	anchor      string
	anchorFound bool
	previous    digest // of the last record
	sequence    uint64
	operation   string // of the last record

	in       *input
	line     int  // the line at hand, from 1
	opened   bool // the file at hand has had its first record
	torn     *tornBytes
	tornLine int
}

// readFile checks one file. What is written to a live file meanwhile is not looked at: its end at the
// beginning of the check is its end.
func (v *verifier) readFile(in *input, last bool) error {
	info, err := in.file.Stat()
	if err != nil {
		return err
	}
	v.in, v.line, v.opened, v.torn = in, 0, false, nil
	lines := bufio.NewReaderSize(io.NewSectionReader(in.file, 0, info.Size()), maxLine+1)
	long := false // the line at hand is longer than the buffer
	for {
		part, err := lines.ReadSlice('\n')
		switch {
		case err == nil && long:
			v.torn.add(trimNewline(part))
			long = false
		case err == nil:
			v.line++
			v.whole(trimNewline(part))
		case errors.Is(err, bufio.ErrBufferFull) && long:
			v.torn.add(part)
		case errors.Is(err, bufio.ErrBufferFull):
			v.line++
			v.tear(part)
			long = true
		case errors.Is(err, io.EOF):
			if len(part) > 0 && !long {
				v.line++
			}
			v.endOfFile(len(part) > 0 || long, last)
			return nil
		default:
			return err
		}
	}
}

// whole takes a line that ends in a newline, without it.
func (v *verifier) whole(line []byte) {
	p, ok := parseLine(line)
	if !ok {
		v.tear(line)
		return
	}
	v.result.Records++
	switch {
	case len(p.Operation) < len(ownPrefix) || p.Operation[:len(ownPrefix)] != ownPrefix:
		v.result.Operations++
	case p.Operation == opRecovered:
		v.result.Recoveries++
		v.result.Lost += p.Lost
	}
	if v.result.Records == 1 {
		v.result.FirstSequence = p.Sequence
	}
	v.result.LastSequence = p.Sequence
	v.anchorFound = v.anchorFound || string(p.hash[:]) == v.anchor
	v.checkTorn(&p)
	v.checkLink(&p)
	v.previous, v.sequence, v.operation, v.opened = p.hash, p.Sequence, p.Operation, true
}

// tear takes a line, or the beginning of one, that is no record.
func (v *verifier) tear(line []byte) {
	if v.torn == nil {
		v.torn, v.tornLine = newTorn(nil), v.line
	} else {
		v.torn.nextLine()
	}
	v.torn.add(line)
}

// checkTorn checks that what is no record before p is covered by it, and that it covers nothing else.
func (v *verifier) checkTorn(p *parsed) {
	torn := v.torn.span()
	v.torn = nil
	switch {
	case torn == nil && p.Torn != nil:
		v.bad(v.line, "it reports a torn record before it, and there is none: lines were removed")
	case torn != nil && (p.Torn == nil || *p.Torn != *torn || p.Operation != opRecovered):
		v.bad(v.tornLine, "this is not a record as it was written, and no recovery record covers it: it was changed or added")
	}
}

func (v *verifier) checkLink(p *parsed) {
	first := v.result.Records == 1
	switch {
	case p.Opens && v.opened:
		v.bad(v.line, "this record begins a file, and is not the first of this one: files were joined or lines added")
	case !p.Opens && !v.opened:
		v.bad(v.line, "the file does not begin with the record that opened it: lines before it were removed")
	case first && p.Sequence != 1:
		// Older files were not given: what this one links to cannot be checked.
	case p.Sequence > v.sequence+1:
		v.bad(v.line, fmt.Sprintf("the sequence goes from %d to %d: records between them were removed", v.sequence, p.Sequence))
	case p.Sequence <= v.sequence:
		v.bad(v.line, fmt.Sprintf("the sequence goes from %d to %d: records were added, or their order was changed", v.sequence, p.Sequence))
	case p.Previous != string(v.previous[:]):
		v.bad(v.line, "it does not link to the record before it: one of the two was replaced")
	}
}

// endOfFile takes the end of the file; partial: its last line has no newline.
func (v *verifier) endOfFile(partial, last bool) {
	switch {
	case last && v.in.live:
		// A record may be half written, or a torn one wait for its recovery record.
	case v.torn != nil:
		v.bad(v.tornLine, "this is not a record as it was written, and no recovery record follows: it was changed, or torn by a crash")
	case partial:
		v.bad(v.line, "the last line has no end: it was cut off, or torn by a crash")
	case !v.opened:
		v.bad(v.line+1, "the file holds no record")
	}
}

// finish judges the end of the chain.
func (v *verifier) finish() Result {
	switch {
	case v.in.live:
		v.result.End = EndLive
	case v.operation == opEnded:
		v.result.End = EndEnded
	case v.operation == opRotated:
		v.result.End = EndRotated
	default:
		v.result.End = EndNone
		v.bad(v.line+1, "no end record, and no process is writing: the process was killed, or the end was cut off; start the plugin again, or give a hash that was kept elsewhere, to find out which")
	}
	if v.anchor != "" && !v.anchorFound {
		v.bad(v.line+1, "no record has the hash "+truncate(v.anchor, hashSize)+" that was asked for: the end was cut off, or the chain was rewritten")
	}
	if v.result.Records > 0 {
		v.result.LastHash = string(v.previous[:])
	}
	v.result.OK = v.result.FirstBad == nil
	return v.result
}

// bad notes a finding, if it is the first.
func (v *verifier) bad(line int, reason string) {
	if v.result.FirstBad == nil {
		v.result.FirstBad, v.result.File, v.result.Reason = &line, v.in.path, reason
	}
}
