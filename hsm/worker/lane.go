package worker

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// lane is this program's end of a session. One goroutine at a time may use it, as for a session.
type lane struct {
	p        *process
	conn     net.Conn
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

// newLane hands one end of a socket pair to the worker.
func (p *process) newLane() (*lane, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	_, _, err = p.lanes.WriteMsgUnix([]byte{0}, unix.UnixRights(int(far.Fd())), nil)
	_ = far.Close()
	if err != nil {
		_ = near.Close()
		return nil, p.lost()
	}
	l := &lane{p: p, conn: near, closed: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[l] = struct{}{}
	return l, nil
}

// drop closes the lane; the session behind it is gone.
func (l *lane) drop(s p11.Session) {
	if !l.gone.Swap(true) {
		close(l.closed)
	}
	_ = l.conn.Close()
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
	_ = l.conn.SetReadDeadline(until)
	message := q.encode(&l.buf)
	_, err := l.conn.Write(message)
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
		n, err := l.conn.Read(l.buf[l.have:])
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
		_ = l.conn.SetReadDeadline(time.Time{})
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
