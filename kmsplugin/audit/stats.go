package audit

import (
	"sync/atomic"
	"time"
)

// hungAfter is how long a write or a flush may take before the trail counts as failing: a disk that works takes
// milliseconds, and one that hangs gives no error.
const hungAfter = 10 * time.Second

// Stats are for metrics.
type Stats struct {
	Sequence uint64 // of the last record: beside a history kept elsewhere, it shows a cut-off end
	Failures uint64 // failed attempts to write, flush or rotate, since the process began
	Lost     uint64 // operations that are not in the trail, since the process began
	Failing  bool   // the last attempt to write or to flush failed, or one has been going on for ten seconds
}

// stats are written under the writer's lock and read without it: that lock is held while the disk is waited for.
type stats struct {
	sequence, failures, lost atomic.Uint64
	failing                  atomic.Bool
	writing, flushing        attempt
}

// attempt is something that can hang. The zero value is one that is not going on.
type attempt struct{ began atomic.Int64 } // unix nanoseconds; 0: not going on

func (a *attempt) begin() { a.began.Store(time.Now().UnixNano()) }
func (a *attempt) end()   { a.began.Store(0) }

func (a *attempt) hangs() bool {
	began := a.began.Load()
	return began != 0 && time.Since(time.Unix(0, began)) > hungAfter
}

// Stats reports how the trail fares. It waits for nobody, also while the disk hangs.
func (w *Writer) Stats() Stats {
	s := &w.stats
	return Stats{
		Sequence: s.sequence.Load(), Failures: s.failures.Load(), Lost: s.lost.Load(),
		Failing: s.failing.Load() || s.writing.hangs() || s.flushing.hangs(),
	}
}
