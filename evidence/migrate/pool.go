package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ErrLost: no API server has answered for a while.
var ErrLost = errors.New("no API server answers")

// A server that gave no answer is left alone for a while, longer each time.
const (
	restFirst = time.Second
	restMost  = 15 * time.Second
)

// pool hands out the API servers in turn. It is used by many goroutines.
type pool struct {
	patience time.Duration // how long none may answer
	members  []member      // as many as there were; mu guards what each has beside its Server

	mu   sync.Mutex // guards the fields below
	next int
	last time.Time // when one of them answered
}

type member struct {
	Server
	until time.Time // left alone until then
	rest  time.Duration
	err   error // its last
}

func newPool(servers []Server, patience time.Duration) *pool {
	p := &pool{patience: patience, last: time.Now()}
	for _, s := range servers {
		p.members = append(p.members, member{Server: s})
	}
	return p
}

// take returns the next server's index, waiting while all are left alone. The error is the context's, or wraps ErrLost.
func (p *pool) take(ctx context.Context) (int, Server, error) {
	for {
		i, wait, err := p.choose(time.Now())
		if err != nil {
			return 0, nil, err
		}
		if wait <= 0 {
			return i, p.members[i].Server, nil
		}
		if err := pause(ctx, wait); err != nil {
			return 0, nil, err
		}
	}
}

// choose returns the next server that is not left alone, or how long all of them are.
func (p *pool) choose(now time.Time) (chosen int, wait time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range p.members {
		i := p.next
		p.next = (p.next + 1) % len(p.members)
		rest := p.members[i].until.Sub(now)
		if rest <= 0 {
			return i, 0, nil
		}
		if wait == 0 || rest < wait {
			wait = rest
		}
	}
	if now.Sub(p.last) > p.patience {
		err := fmt.Errorf("%w for %s; %s: %w", ErrLost, p.patience, p.members[0].Name(), p.members[0].err)
		return 0, 0, hint.Wrap(err, "check that the API servers are healthy, then run it again: it continues with the rest")
	}
	return 0, wait, nil
}

// answered and silent tell how a server that was taken did.
func (p *pool) answered(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	p.members[i].until, p.members[i].rest = time.Time{}, 0
}

func (p *pool) silent(i int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &p.members[i]
	if now := time.Now(); !now.Before(m.until) { // several may come back with the same failure
		m.rest = min(restMost, max(restFirst, 2*m.rest))
		m.until, m.err = now.Add(m.rest), err
	}
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
