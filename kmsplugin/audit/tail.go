package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// maxTail bounds how much of a file's end is searched for its last good record, in bytes. A power loss can
// leave what was written since the last flush as garbage: a second's worth.
const maxTail = 16 << 20

// errNotATrail: the file holds something else, or its end is damaged beyond maxTail.
var errNotATrail = errors.New("not an audit trail, or damaged at its end")

// tail is the end of a file.
type tail struct {
	last    *parsed    // the last good record; nil: the file has none
	torn    *tornBytes // what stands after it; nil: nothing
	newline bool       // the file's last byte is not a newline, so one must come before the next record
}

// readTail finds the last good record of a file of that size, in bytes. It reads at most maxTail.
func readTail(file io.ReaderAt, size int64) (tail, error) {
	for window := int64(64 << 10); ; window *= 4 {
		window = min(window, size, maxTail)
		buf := make([]byte, window)
		if _, err := file.ReadAt(buf, size-window); err != nil && !errors.Is(err, io.EOF) {
			return tail{}, fmt.Errorf("reading the end of the audit trail: %w", err)
		}
		if t, ok := lastRecord(buf, window == size); ok {
			return t, nil
		}
		if window == size {
			return noRecordIn(buf)
		}
		if window == maxTail {
			return tail{}, fmt.Errorf("%w: no record in its last %d MiB", errNotATrail, maxTail>>20)
		}
	}
}

// lastRecord searches buf, a file's end, backwards. whole: buf begins where the file does.
func lastRecord(buf []byte, whole bool) (tail, bool) {
	end := len(buf)
	for end > 0 {
		begin := bytes.LastIndexByte(buf[:end], '\n') + 1
		if begin == 0 && !whole {
			return tail{}, false // the line may have begun before buf
		}
		if p, ok := parseLine(buf[begin:end]); ok {
			if end == len(buf) {
				return tail{last: &p, newline: true}, true
			}
			t := tailOf(buf[end+1:])
			t.last = &p
			return t, true
		}
		end = begin - 1
	}
	return tail{}, false
}

// tailOf says what rest, which follows the last good record and its newline, is.
func tailOf(rest []byte) tail {
	if len(rest) == 0 {
		return tail{}
	}
	torn, complete := bytes.CutSuffix(rest, []byte{'\n'})
	return tail{torn: newTorn(torn), newline: !complete}
}

// noRecordIn judges a file without any record: empty, or the torn first record of one of ours. Anything else
// is not ours to append to: a mistaken path must not spoil another program's file.
func noRecordIn(content []byte) (tail, error) {
	const start = `{"time":"`
	known := content[:min(len(content), len(start))]
	ours := bytes.HasPrefix([]byte(start), known) || len(bytes.Trim(content, "\x00")) == 0
	if !ours || len(content) > maxLine {
		return tail{}, fmt.Errorf("%w: it holds no record", errNotATrail)
	}
	return tailOf(content), nil
}

// tailOfFile is readTail of an open file, with the path in its errors.
func tailOfFile(file *os.File) (tail, error) {
	info, err := file.Stat()
	if err != nil {
		return tail{}, fmt.Errorf("reading the audit trail: %w", err)
	}
	t, err := readTail(file, info.Size())
	if errors.Is(err, errNotATrail) {
		return tail{}, hint.Wrap(fmt.Errorf("%s: %w", file.Name(), err), "move the file away and keep it; a new one is begun")
	}
	return t, err
}
