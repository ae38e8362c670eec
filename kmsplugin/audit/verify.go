package audit

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/hsm-kms/hsm-kms/internal/filelock"
)

// How a chain ends.
const (
	EndEnded   = "ended"   // with the end record of an orderly end
	EndRotated = "rotated" // it goes on in a file that was not given
	EndLive    = "live"    // a process is writing it: nothing can be said of its end
	EndNone    = "none"    // the process was killed, or the end was cut off
)

// Result is what a check found. The first three are what `audit verify -o json` promises.
type Result struct {
	Records  int  `json:"records"`  // whole records in the files, the chain's own included
	OK       bool `json:"ok"`       // the chain holds from the first record to the end
	FirstBad *int `json:"firstBad"` // the first line where it does not, from 1, in File; nil when OK

	File   string `json:"file,omitempty"`   // of FirstBad
	Reason string `json:"reason,omitempty"` // what is wrong there

	Operations    int    `json:"operations"`    // records that are not the chain's own
	Recoveries    int    `json:"recoveries"`    // audit.recovered records: crashes, full disks, interference
	Lost          uint64 `json:"lost"`          // operations that those say are not in the trail
	FirstSequence uint64 `json:"firstSequence"` // above 1: older files were not given
	LastSequence  uint64 `json:"lastSequence"`
	LastHash      string `json:"lastHash"` // to be kept elsewhere, as the anchor of a later check
	End           string `json:"end"`      // one of the End constants
}

// Verify checks that the files hold one unbroken chain. They may be given in any order: each is placed by its
// first record. anchor, if not empty, is a hash that must be in the chain: the last one known from elsewhere.
//
// A finding is in the Result. The error is that of files which cannot be read.
func Verify(anchor string, paths ...string) (Result, error) {
	if len(paths) == 0 {
		return Result{}, errors.New("checking the audit trail: no file is given")
	}
	files, err := openAll(paths)
	defer func() {
		for _, f := range files {
			_ = f.file.Close() // read only
		}
	}()
	if err != nil {
		return Result{}, err
	}
	v := verifier{anchor: anchor, previous: noRecord()}
	for i, f := range files {
		if err := v.readFile(f, i == len(files)-1); err != nil {
			return Result{}, fmt.Errorf("checking the audit trail %s: %w", f.path, err)
		}
	}
	return v.finish(), nil
}

// input is a file to be checked.
type input struct {
	path  string
	file  *os.File
	live  bool   // a process was writing it when the check began
	first uint64 // sequence of its first record; the highest number when it has none
}

// openAll opens the files and puts them in the order of the chain.
func openAll(paths []string) ([]*input, error) {
	var files []*input
	for _, path := range paths {
		file, err := OpenToRead(path)
		if err != nil {
			return files, fmt.Errorf("opening the audit trail: %w", err)
		}
		in := &input{path: path, file: file}
		files = append(files, in)
		in.live = filelock.IsHeld(file)
		if in.first, err = firstSequence(file); err != nil {
			return files, fmt.Errorf("reading the audit trail %s: %w", path, err)
		}
	}
	slices.SortStableFunc(files, func(a, b *input) int { return cmp.Compare(a.first, b.first) })
	return files, nil
}

// firstSequence is that of the first record within the first lines of a file.
func firstSequence(file io.ReaderAt) (uint64, error) {
	const none = ^uint64(0)
	lines := bufio.NewReaderSize(io.NewSectionReader(file, 0, 8*maxLine), maxLine+1)
	for {
		line, err := lines.ReadSlice('\n')
		if p, ok := parseLine(trimNewline(line)); ok {
			return p.Sequence, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return none, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return none, err
		}
	}
}

func trimNewline(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		return line[:n-1]
	}
	return line
}
