package worker

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Client is a worker's library as p11.API. For says how long its calls may take; without it they have no limit.
//
// Concurrency: as p11.API says. At most maxAsked calls other than the operations of a session are under way at once; one
// more is overdue at once.
type Client struct {
	*process
	ctx   context.Context // nil: none
	limit time.Duration   // 0: none
}

var _ p11.API = (*Client)(nil)

// For is the same worker with limits: each call is overdue after limit, and every one when ctx ends.
func (c *Client) For(ctx context.Context, limit time.Duration) *Client {
	return &Client{process: c.process, ctx: ctx, limit: limit}
}

// deadline is when a call that begins now is overdue; zero: never.
func (c *Client) deadline(until time.Time) time.Time {
	sooner := func(t time.Time) {
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	if c.limit > 0 {
		sooner(time.Now().Add(c.limit))
	}
	if c.ctx != nil {
		if t, ok := c.ctx.Deadline(); ok {
			sooner(t)
		}
		if c.ctx.Err() != nil {
			sooner(time.Unix(1, 0))
		}
	}
	return until
}

// ask makes a control request and waits for its answer.
func (c *Client) ask(q request) (answer, error) {
	ctx := c.ctx
	if ctx == nil {
		ctx = context.Background()
	}
	if until := c.deadline(time.Time{}); !until.IsZero() {
		limited, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		ctx = limited
	}
	if ctx.Err() != nil { // what was not begun is not begun now
		returned := make(chan struct{})
		close(returned)
		return answer{}, &p11.Overdue{Function: string(q.Operation), Returned: returned, Cause: ctx.Err()}
	}
	asked := c.send(&q)
	select {
	case got := <-asked.result:
		return got.answer, got.err
	case <-ctx.Done():
	}
	c.noteOverdue(asked, asked.began)
	select {
	case got := <-asked.result: // it came before it was noted
		c.noteReturned(asked)
		return got.answer, got.err
	default:
	}
	overdue := &p11.Overdue{Function: string(q.Operation), Returned: asked.returned}
	if c.ctx != nil {
		overdue.Cause = c.ctx.Err()
	}
	return answer{}, overdue
}

// Initialize implements p11.API.
func (c *Client) Initialize() error {
	_, err := c.ask(request{header: header{Operation: opInitialize}})
	return err
}

// Slots implements p11.API.
func (c *Client) Slots() ([]uint, error) {
	a, err := c.ask(request{header: header{Operation: opSlots}})
	return a.Slots, err
}

// TokenInfo implements p11.API.
func (c *Client) TokenInfo(slot uint) (pkcs11.TokenInfo, error) {
	a, err := c.ask(request{header: header{Operation: opTokenInfo}, Slot: slot})
	if err != nil {
		return pkcs11.TokenInfo{}, err
	}
	return a.Token.unwrap(), nil
}

// Mechanism implements p11.API.
func (c *Client) Mechanism(slot, mechanism uint) (pkcs11.MechanismInfo, error) {
	a, err := c.ask(request{header: header{Operation: opMechanism}, Slot: slot, Mechanism: mechanism})
	if err != nil {
		return pkcs11.MechanismInfo{}, err
	}
	return *a.Mechanism, nil
}

// SessionInfo implements p11.API.
func (c *Client) SessionInfo(s p11.Session) (pkcs11.SessionInfo, error) {
	a, err := c.ask(request{header: header{Operation: opSessionInfo}, Session: s})
	if err != nil {
		return pkcs11.SessionInfo{}, err
	}
	return *a.Session, nil
}

// LookAtPIN is pinfile.LookAt in the worker: this process never reads the PIN.
func (c *Client) LookAtPIN(file pinfile.Identity, key []byte) (pinfile.Look, error) {
	a, err := c.ask(request{header: header{Operation: opLookAtPIN}, PIN: &file, Key: key})
	if err != nil {
		return pinfile.Look{}, err
	}
	return *a.PIN, nil
}

// Login implements p11.API.
func (c *Client) Login(s p11.Session, pin pinfile.Identity) error {
	_, err := c.ask(request{header: header{Operation: opLogin}, Session: s, PIN: &pin})
	return err
}

// FindSecretKeys implements p11.API.
func (c *Client) FindSecretKeys(s p11.Session, label string, limit int) ([]p11.Object, error) {
	a, err := c.ask(request{header: header{Operation: opFind}, Session: s, Label: label, Limit: min(limit, maxListed)})
	return a.Objects, err
}

// FindData implements p11.API.
func (c *Client) FindData(s p11.Session, application, label string, limit int) ([]p11.Object, error) {
	a, err := c.ask(request{header: header{Operation: opFindData}, Session: s, Owner: application, Label: label, Limit: min(limit, maxListed)})
	return a.Objects, err
}

// CreateData implements p11.API.
func (c *Client) CreateData(s p11.Session, application, label string, value []byte) error {
	_, err := c.ask(request{header: header{Operation: opCreateData}, Session: s, Owner: application, Label: label, Value: value})
	return err
}

// Attribute implements p11.API.
func (c *Client) Attribute(s p11.Session, o p11.Object, attribute uint) ([]byte, error) {
	values, err := c.Attributes(s, o, []uint{attribute})
	return values[attribute], err
}

// Attributes implements p11.API.
func (c *Client) Attributes(s p11.Session, o p11.Object, attributes []uint) (map[uint][]byte, error) {
	a, err := c.ask(request{header: header{Operation: opAttributes}, Session: s, Object: o, Attributes: attributes})
	return a.Values, err
}

// DestroyObject implements p11.API.
func (c *Client) DestroyObject(s p11.Session, o p11.Object) error {
	_, err := c.ask(request{header: header{Operation: opDestroy}, Session: s, Object: o})
	return err
}

// OpenSession implements p11.API. The session of a call that was overdue is closed when it has been opened after all.
func (c *Client) OpenSession(slot uint, readWrite bool) (p11.Session, error) {
	l, err := c.newLane()
	if err != nil {
		return 0, err
	}
	a, err := l.call(c.deadline(time.Time{}), laneRequest{
		operation: laneOpen, object: uint64(slot), flags: uint64(p11.SessionFlags(readWrite)),
	})
	if overdue, ok := errors.AsType[*p11.Overdue](err); ok {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			<-overdue.Returned
			if l.err == nil {
				_, _ = l.call(time.Time{}, laneRequest{operation: laneClose}) // nothing is left to try
			}
			l.drop(0)
		}()
		// A session that comes late counts until it is closed, or one too many would be open meanwhile.
		return 0, &p11.Overdue{Function: overdue.Function, Returned: closed, Cause: overdue.Cause}
	}
	if err != nil {
		l.drop(0)
		return 0, err
	}
	s := p11.Session(a.session)
	c.mu.Lock()
	old := c.sessions[s]
	c.sessions[s] = l
	c.mu.Unlock()
	if old != nil {
		old.drop(s) // the module gave its number away: that session is gone
	}
	return s, nil
}

// lane finds a session's; nil: there is none.
func (p *process) lane(s p11.Session) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions[s]
}

// CloseSession implements p11.API.
func (c *Client) CloseSession(s p11.Session) error {
	l := c.lane(s)
	if l == nil {
		return &p11.Error{Function: "C_CloseSession", RV: pkcs11.CKR_SESSION_HANDLE_INVALID}
	}
	if returned := c.awaited(s, l); returned != nil || l.closing.Load() {
		if l.closing.CompareAndSwap(false, true) {
			go c.closeAfter(returned, s, l)
		}
		return &p11.Overdue{Function: "C_CloseSession", Returned: l.closed}
	}
	_, err := l.call(c.deadline(time.Time{}), laneRequest{operation: laneClose})
	if overdue, ok := errors.AsType[*p11.Overdue](err); ok {
		l.closing.Store(true)
		go func() {
			<-overdue.Returned
			l.drop(s)
		}()
		return err
	}
	if err == nil || p11.SessionIsGone(err) || errors.Is(err, p11.ErrEnded) {
		l.drop(s)
	}
	return err
}

// closeAfter closes a session when the call in it that is overdue has returned.
func (c *Client) closeAfter(returned <-chan struct{}, s p11.Session, l *lane) {
	<-returned
	if !l.gone.Load() {
		_, _ = l.call(time.Time{}, laneRequest{operation: laneClose}) // what it says is of no use any more
	}
	l.drop(s)
}

// awaited is closed when a call in the session that is overdue has returned; nil: none is.
func (p *process) awaited(s p11.Session, l *lane) <-chan struct{} {
	if l.busy.Load() {
		return l.settled
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.asked {
		if a.session == s {
			return a.returned
		}
	}
	return nil
}

// EncryptGCM implements p11.API.
func (c *Client) EncryptGCM(until time.Time, s p11.Session, key p11.Object, nonce, associated, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_EncryptInit", nonce, associated, in); err != nil {
		return nil, err
	}
	return c.operate(until, s, laneRequest{operation: laneEncryptGCM, object: uint64(key), nonce: nonce, associated: associated, in: in})
}

// EncryptGCMOwnIV implements p11.API.
func (c *Client) EncryptGCMOwnIV(until time.Time, s p11.Session, key p11.Object, iv, associated, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_EncryptInit", iv, associated, in); err != nil {
		return nil, err
	}
	if len(iv) > p11.MaxOwnIV {
		return nil, &p11.Error{Function: "C_EncryptInit", RV: pkcs11.CKR_DATA_LEN_RANGE}
	}
	return c.operate(until, s, laneRequest{operation: laneOwnIV, object: uint64(key), nonce: iv, associated: associated, in: in})
}

// EncryptECB implements p11.API.
func (c *Client) EncryptECB(until time.Time, s p11.Session, key p11.Object, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_EncryptInit", []byte{0}, []byte{0}, in); err != nil {
		return nil, err
	}
	return c.operate(until, s, laneRequest{operation: laneECB, object: uint64(key), in: in})
}

// DecryptGCM implements p11.API.
func (c *Client) DecryptGCM(until time.Time, s p11.Session, key p11.Object, nonce, associated, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_DecryptInit", nonce, associated, in); err != nil {
		return nil, err
	}
	return c.operate(until, s, laneRequest{operation: laneDecryptGCM, object: uint64(key), nonce: nonce, associated: associated, in: in})
}

// HMAC implements p11.API.
func (c *Client) HMAC(until time.Time, s p11.Session, key p11.Object, in []byte) ([]byte, error) {
	if err := p11.CheckSizes("C_SignInit", []byte{0}, []byte{0}, in); err != nil {
		return nil, err
	}
	return c.operate(until, s, laneRequest{operation: laneHMAC, object: uint64(key), in: in})
}

func (c *Client) operate(until time.Time, s p11.Session, q laneRequest) ([]byte, error) {
	l := c.lane(s)
	if l == nil {
		return nil, &p11.Error{Function: functions(q.operation)[0], RV: pkcs11.CKR_SESSION_HANDLE_INVALID}
	}
	a, err := l.call(c.deadline(until), q)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(a.out)
	copy(q.nonce, a.iv) // empty, but for the operation that gives one
	clear(a.out)
	return out, nil
}
