package kmsplugin

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// stuckAfter is how long all slots for requests may be taken with none of them answered. A call into the HSM ends within
// seconds, well or abandoned, so nothing that the HSM does takes that long.
const stuckAfter = time.Minute

// Live reports whether this process works, whatever the HSM does: nil, or what is stuck in it. That is for a supervisor to
// end, and for nobody else: an HSM that is down or hangs is no reason, since a new process would meet it too. It takes
// microseconds. An error is logged once.
func (p *Plugin) Live() error {
	err := errors.Join(p.health.Turning(), p.live.moving(p.guard.slots.Full(), time.Now()))
	p.live.say(err, func() {
		p.options.Logger.Error("the process is stuck, and reports that to its supervisor", "error", err, "hint", hint.Of(err))
	})
	return err
}

// live watches the requests. It is the Metrics of the guard, so that it sees each answer.
type live struct {
	Metrics
	answers atomic.Uint64 // to Encrypt and Decrypt

	mu     sync.Mutex // guards the fields below
	seen   uint64     // answers at the last look
	free   time.Time  // when the slots were last seen to be free, or to become so
	logged bool       // the error that lasts
}

// Answered counts, and passes on.
func (l *live) Answered(operation string, code codes.Code, took time.Duration) {
	if operation != OperationStatus {
		l.answers.Add(1)
	}
	l.Metrics.Answered(operation, code, took)
}

// moving is an error when every look for stuckAfter has found all slots taken, and no answer since the look before.
func (l *live) moving(full bool, now time.Time) error {
	answers := l.answers.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !full || answers != l.seen || l.free.IsZero() {
		l.seen, l.free = answers, now
		return nil
	}
	stuck := now.Sub(l.free)
	if stuck <= stuckAfter {
		return nil
	}
	return hint.Wrap(fmt.Errorf("all slots for requests are taken, and none was answered for %s", stuck.Round(time.Second)),
		"check whether the disk of the audit trail hangs; else report it with the goroutines that SIGQUIT prints")
}

// say calls log when err is news.
func (l *live) say(err error, log func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && !l.logged {
		log()
	}
	l.logged = err != nil
}
