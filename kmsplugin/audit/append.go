package audit

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// begin empties the buffer for one line and returns where the line starts: after the newline that a torn line
// before it may need. w.mu is held.
func (w *Writer) begin() int {
	w.buf = w.buf[:0]
	if w.newline {
		w.buf = append(w.buf, '\n')
	}
	return len(w.buf)
}

// write links the line in the buffer to the chain and appends it, by one write(2). On an error the chain
// stays where it was, and what did get into the file is torn. w.mu is held.
func (w *Writer) write(start int) error {
	var own digest
	w.buf, own = link(w.buf, start, w.previous)
	w.buf = append(w.buf, '\n')
	n, err := w.file.Write(w.buf)
	w.size += int64(n)
	if n < len(w.buf)-1 {
		w.tear(w.buf[:n], start)
		return fmt.Errorf("writing the audit trail: %w", err)
	}
	// With all but its newline there, the line is whole as soon as the next one brings the newline.
	w.newline = n < len(w.buf)
	w.sequence++
	w.stats.sequence.Store(w.sequence)
	w.previous = own
	w.fresh = false
	w.torn = nil
	w.flush.wanted()
	return nil
}

// tear notes what a failed write left: written begins with a newline if start is 1. w.mu is held.
func (w *Writer) tear(written []byte, start int) {
	if len(written) == 0 {
		return
	}
	if len(written) == start {
		w.newline = false // the line before is ended, and no other begun
		return
	}
	w.newline = true
	if w.torn == nil {
		w.torn = newTorn(nil)
	} else {
		w.torn.nextLine()
	}
	w.torn.add(written[start:])
	w.flush.wanted()
}

// writePending writes the chain's own record that is due, if one is. w.mu is held.
func (w *Writer) writePending() error {
	if w.pending == nil {
		return nil
	}
	if err := w.writeEvent(w.pending); err != nil {
		return err
	}
	w.pending = nil
	return nil
}

// writeEvent needs the lock: w.mu is held.
func (w *Writer) writeEvent(e *event) error {
	e.opens = w.fresh
	e.torn = w.torn.span()
	start := w.begin()
	w.buf = appendEvent(w.buf, time.Now(), w.sequence+1, e)
	return w.write(start)
}

// look compares the file with how we left it. Only we append to it, so any other size is news, and is said in
// the trail: logrotate's copytruncate empties it; nobody should do the rest. w.mu is held.
func (w *Writer) look() error {
	var st unix.Stat_t
	if err := unix.Fstat(w.fd, &st); err != nil {
		return fmt.Errorf("looking at the audit trail: %w", err)
	}
	if st.Nlink == 0 {
		return w.replace("the file was removed while it was written")
	}
	if st.Size == w.size {
		return nil
	}
	cause := fmt.Sprintf("the file had %d bytes and has %d", w.size, st.Size)
	w.opts.Logger.Warn("audit trail was changed by another process", "path", w.path, "cause", cause)
	w.pendingRecovery(cause)
	// The torn record is gone, or followed by foreign bytes. The newline keeps our next record whole, and
	// nothing covers what others wrote: the check of the file will name it.
	w.size, w.torn = st.Size, nil
	w.newline = st.Size > 0
	w.fresh = st.Size == 0
	return nil
}
