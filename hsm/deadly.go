package hsm

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// A request that was under way when the worker died is tried once more, alone: with no other beside it, because one of
// those that died together may be why. When the worker dies of it again, it is refused for a while; otherwise a client that
// repeats it would keep the token from serving anybody.

// deadlyFor is how long such a request is refused.
const deadlyFor = 10 * time.Minute

// maxDeadly bounds those that are remembered.
const maxDeadly = 1024

// deadly remembers requests by a digest under a key of this process, so that nothing of a DEK can be found from it.
type deadly struct {
	key   [32]byte
	mu    sync.Mutex // guards the fields below
	until map[[sha256.Size]byte]time.Time
}

func newDeadly() *deadly {
	d := &deadly{until: map[[sha256.Size]byte]time.Time{}}
	_, _ = rand.Read(d.key[:]) // it never fails
	return d
}

func (d *deadly) digest(id envelope.KeyID, op *operation) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, d.key[:])
	for _, part := range [][]byte{[]byte(op.name), []byte(id.String()), op.in[0], op.in[1], op.in[2]} {
		_, _ = mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		_, _ = mac.Write(part)
	}
	mac.Sum(sum[:0])
	return sum
}

// note remembers a request.
func (d *deadly) note(id envelope.KeyID, op *operation) {
	sum := d.digest(id, op)
	d.mu.Lock()
	defer d.mu.Unlock()
	for known, until := range d.until {
		if time.Now().After(until) {
			delete(d.until, known)
		}
	}
	if len(d.until) < maxDeadly {
		d.until[sum] = time.Now().Add(deadlyFor)
	}
}

// refuses reports whether a request is one of them.
func (d *deadly) refuses(id envelope.KeyID, op *operation) bool {
	d.mu.Lock()
	none := len(d.until) == 0
	d.mu.Unlock()
	if none {
		return false
	}
	sum := d.digest(id, op)
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.until[sum])
}

// takeAlone takes every permit, so that nothing else is under way in the worker.
func (t *Token) takeAlone(ctx context.Context, until time.Time) (release func(), err error) {
	select {
	case t.alone <- struct{}{}: // two that hold half of the permits each would wait for each other
	case <-time.After(time.Until(until)):
		return nil, t.outOfTime(ctx)
	}
	taken := 0
	release = func() {
		for range taken {
			t.releasePermit()
		}
		<-t.alone
	}
	for ; taken < t.cfg.MaxSessions; taken++ {
		if err := t.takePermit(ctx, until); err != nil {
			release()
			return nil, err
		}
	}
	return release, nil
}
