package worker

import (
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// maxAsked bounds the control requests that are under way.
const maxAsked = 16

// exchange is a control request and its answer to come.
type exchange struct {
	header   header
	began    time.Time
	session  p11.Session   // that the calls are made on; 0: none
	result   chan outcome  // holds the one value that comes
	returned chan struct{} // closed when it has come
}

func (a *exchange) finish(got outcome) {
	a.result <- got
	close(a.returned)
}

// outcome is an answer, or the error in its place.
type outcome struct {
	answer answer
	err    error
}

// send sends a request. Its result comes when there is an answer, or when there can be none.
func (p *process) send(q *request) *exchange {
	a := &exchange{began: time.Now(), session: q.Session, result: make(chan outcome, 1), returned: make(chan struct{})}
	p.mu.Lock()
	switch {
	case p.gone:
		p.mu.Unlock()
		a.finish(outcome{err: p.lost()})
		return a
	case len(p.asked) >= maxAsked:
		p.mu.Unlock()
		a.finish(outcome{err: &p11.Overdue{Function: string(q.Operation), Returned: a.returned}})
		return a
	}
	p.sequence++
	q.Sequence, q.Generation = p.sequence, p.cfg.Generation
	a.header = q.header
	p.asked[q.Sequence] = a
	p.mu.Unlock()
	p.writing.Lock()
	defer p.writing.Unlock()
	if err := writeFrame(p.control, q); err != nil {
		_ = p.control.Close() // readAnswers says so to all who wait
	}
	return a
}

// readAnswers delivers the answers until there are no more.
func (p *process) readAnswers() {
	for {
		var a answer
		if err := readFrame(p.control, &a); err != nil {
			break
		}
		if !p.deliver(&a) {
			break // nothing that it says is believed any more
		}
	}
	p.mu.Lock()
	p.gone = true
	left := p.asked
	p.asked = map[uint64]*exchange{}
	p.mu.Unlock()
	err := p.lost()
	for _, a := range left {
		a.finish(outcome{err: err})
		p.noteReturned(a)
	}
}

// deliver hands an answer to the one who asked; false: nobody did.
func (p *process) deliver(a *answer) bool {
	p.mu.Lock()
	to := p.asked[a.Sequence]
	delete(p.asked, a.Sequence)
	p.mu.Unlock()
	if to == nil || to.header != a.header {
		return false
	}
	for _, made := range a.Calls {
		p.cfg.Hook(made.Function, made.RV, made.Took)
	}
	to.finish(outcome{*a, a.Failed.unwrap()})
	p.noteReturned(to)
	return true
}
