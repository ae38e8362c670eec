package worker

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/nonblock"
)

// lane is this program's side of a session: the ends of two pipes, on Go's network poller. One goroutine at a time may use
// it, as for a session.
type lane struct {
	p        *process
	requests *os.File
	answers  *os.File
	sender   *nonblock.Writer // of requests
	receiver *nonblock.Reader // of answers
	sequence uint64
	doing    atomic.Uint32 // the operation under way, 0: none
	buf      [laneMessage]byte
	have     int // bytes of the answer in buf

	// While a call is overdue a goroutine waits for its answer; the lane is busy until it closes settled.
	busy    atomic.Bool
	closing atomic.Bool   // it is closed when no call is overdue in it any more
	gone    atomic.Bool   // the session behind it is gone
	closed  chan struct{} // closed when the lane is
	settled chan struct{}
	err     error // of the call that was overdue; read it when settled is closed
}

// newLane hands the other ends to the worker.
func (p *process) newLane() (*lane, error) {
	theirRequests, requests, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making the pipes of a session: %w", err)
	}
	answers, theirAnswers, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the pipes of a session: %w", err), theirRequests.Close(), requests.Close())
	}
	l := &lane{p: p, requests: requests, answers: answers, closed: make(chan struct{})}
	l.sender, err = nonblock.NewWriter(requests)
	if err == nil {
		l.receiver, err = nonblock.NewReader(answers)
	}
	if err != nil {
		l.close()
		return nil, errors.Join(fmt.Errorf("using the pipes of a session: %w", err), theirRequests.Close(), theirAnswers.Close())
	}
	// Fd makes them block, which is what the loop in the worker needs.
	_, _, err = p.lanes.WriteMsgUnix([]byte{0}, unix.UnixRights(int(theirRequests.Fd()), int(theirAnswers.Fd())), nil)
	_, _ = theirRequests.Close(), theirAnswers.Close()
	if err != nil {
		l.close()
		return nil, p.lost()
	}
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.all[l] = struct{}{}
	}
	p.mu.Unlock()
	if closed { // meanwhile, and nobody would close these; the worker's ends may be with a process that the library forked
		l.close()
		return nil, p.lost()
	}
	return l, nil
}

// close closes this program's ends. A call that reads or writes ends with an error.
func (l *lane) close() { _, _ = l.requests.Close(), l.answers.Close() }

// drop closes the lane; the session behind it is gone.
func (l *lane) drop(s p11.Session) {
	if !l.gone.Swap(true) {
		close(l.closed)
	}
	l.close()
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	delete(l.p.all, l)
	if l.p.sessions[s] == l {
		delete(l.p.sessions, s)
	}
}

// functions are the PKCS#11 calls that an operation makes.
func functions(op uint32) []string {
	switch op {
	case laneOpen:
		return []string{"C_OpenSession"}
	case laneClose:
		return []string{"C_CloseSession"}
	case laneEncryptGCM, laneOwnIV, laneECB:
		return []string{"C_EncryptInit", "C_Encrypt"}
	case laneDecryptGCM:
		return []string{"C_DecryptInit", "C_Decrypt"}
	}
	return []string{"C_SignInit", "C_Sign"}
}

// call sends q and waits for its answer until the time is up; zero: without a limit. *p11.Overdue: the call goes on. The
// answer's output is in l.buf: the caller copies and wipes it.
func (l *lane) call(until time.Time, q laneRequest) (laneAnswer, error) {
	if l.busy.Load() {
		return laneAnswer{}, &p11.Overdue{Function: functions(q.operation)[0], Returned: l.settled}
	}
	began := time.Now()
	l.sequence++
	q.sequence, q.generation = l.sequence, l.p.cfg.Generation
	l.doing.Store(q.operation)
	_ = l.answers.SetReadDeadline(until)
	message := q.encode(&l.buf)
	_, err := l.sender.Write(message)
	clear(message)
	var a laneAnswer
	if err == nil {
		l.have = 0
		a, err = l.receive(&q)
	}
	switch {
	case err == nil:
		l.doing.Store(0)
		return a, l.failed(q.operation, &a)
	case errors.Is(err, os.ErrDeadlineExceeded):
		l.abandon(q, began)
		return a, &p11.Overdue{Function: strings.Join(functions(q.operation), " or "), Returned: l.settled}
	}
	return a, l.p.lost()
}

// receive reads the answer to q, of which l.have bytes are in l.buf.
func (l *lane) receive(q *laneRequest) (laneAnswer, error) {
	for {
		if l.have >= answerHeader {
			size, err := answerSize(l.buf[:])
			switch {
			case err != nil:
				return laneAnswer{}, err
			case l.have == size:
				return decodeAnswer(l.buf[:size], q)
			case l.have > size:
				return laneAnswer{}, errProtocol
			}
		}
		n, err := l.receiver.Read(l.buf[l.have:])
		l.have += n
		if err != nil {
			return laneAnswer{}, err
		}
	}
}

// failed reports the calls of an answer, and is the error of the one that failed.
func (l *lane) failed(op uint32, a *laneAnswer) error {
	names := functions(op)
	l.p.cfg.Hook(names[0], a.initRV, a.init)
	if a.initRV != 0 {
		return &p11.Error{Function: names[0], RV: a.initRV}
	}
	if !a.second {
		return nil
	}
	l.p.cfg.Hook(names[1], a.rv, a.took)
	if a.rv != 0 {
		return &p11.Error{Function: names[1], RV: a.rv}
	}
	return nil
}

// abandon goes on waiting in the background.
func (l *lane) abandon(q laneRequest, began time.Time) {
	settled := make(chan struct{}) // the field may be another call's when this one closes it
	l.settled = settled
	l.busy.Store(true)
	l.p.noteOverdue(l, began)
	go func() {
		_ = l.answers.SetReadDeadline(time.Time{})
		a, err := l.receive(&q)
		if err == nil {
			l.doing.Store(0)
			err = l.failed(q.operation, &a)
		} else {
			err = l.p.lost()
		}
		clear(l.buf[:])
		l.err = err
		l.p.noteReturned(l)
		l.busy.Store(false)
		close(settled)
	}()
}
