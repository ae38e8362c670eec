package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// operation is one use of a key on a session, which no one waits for after until.
type operation struct {
	name string
	in   [3][]byte // what tells it from another with the same key
	run  func(api p11.API, until time.Time, s p11.Session, key p11.Object) ([]byte, error)
	// flawed: a refusal may be the input's fault and not the token's (decryption).
	flawed bool
}

// EncryptGCM implements envelope.Token.
func (t *Token) EncryptGCM(ctx context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	t.nonces.Add(id)
	return t.operate(ctx, id, operation{name: "C_Encrypt", in: [3][]byte{associated, plaintext}, run: func(api p11.API, until time.Time, s p11.Session, key p11.Object) ([]byte, error) {
		return api.EncryptGCM(until, s, key, nonce[:], associated, plaintext)
	}})
}

// DecryptGCM implements envelope.Token.
func (t *Token) DecryptGCM(ctx context.Context, id envelope.KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	return t.operate(ctx, id, operation{name: "C_Decrypt", in: [3][]byte{nonce, associated, sealed}, flawed: true, run: func(api p11.API, until time.Time, s p11.Session, key p11.Object) ([]byte, error) {
		return api.DecryptGCM(until, s, key, nonce, associated, sealed)
	}})
}

// EncryptBlocks implements envelope.Token.
func (t *Token) EncryptBlocks(ctx context.Context, id envelope.KeyID, blocks []byte) ([]byte, error) {
	return t.operate(ctx, id, operation{name: "C_Encrypt", in: [3][]byte{blocks}, run: func(api p11.API, until time.Time, s p11.Session, key p11.Object) ([]byte, error) {
		return api.EncryptECB(until, s, key, blocks)
	}})
}

// MAC implements envelope.Token.
func (t *Token) MAC(ctx context.Context, id envelope.KeyID, data []byte) (mac [envelope.MACSize]byte, err error) {
	out, err := t.operate(ctx, id, operation{name: "C_Sign", in: [3][]byte{data}, run: func(api p11.API, until time.Time, s p11.Session, key p11.Object) ([]byte, error) {
		return api.HMAC(until, s, key, data)
	}})
	defer clear(out)
	if err == nil && len(out) != len(mac) {
		err = fmt.Errorf("token %s: %w: an HMAC of %d bytes", t.cfg.Name, envelope.ErrSelfTest, len(out))
	}
	if err != nil {
		return mac, err
	}
	return [envelope.MACSize]byte(out), nil
}

// operate does op with the key within the call time-out of the token, retries included (decide.go).
func (t *Token) operate(ctx context.Context, id envelope.KeyID, op operation) ([]byte, error) {
	until := time.Now().Add(t.cfg.CallTimeout)
	if t.deadly.refuses(id, &op) {
		return nil, fmt.Errorf("token %s: %w: %w", t.cfg.Name, envelope.ErrUnavailable, envelope.ErrDeadly)
	}
	var did progress
	for {
		if ctx.Err() != nil {
			return nil, t.outOfTime(ctx) // nobody waits for an answer, so the HSM is not asked
		}
		gen, held, err := t.keyFor(ctx, until, id, &did)
		if err != nil {
			return nil, err
		}
		take := t.takeOne
		if did.died {
			take = t.takeAlone
		}
		out, err := t.once(ctx, until, gen, held, op, did.retried || did.checked, take)
		if err == nil {
			t.count(gen, false)
			return out, nil
		}
		if err = t.prepareRetry(ctx, until, gen, held, op, err, &did); err != nil {
			return nil, err
		}
	}
}

// progress is what an operation has been through.
type progress struct {
	retried   bool // on a fresh session
	checked   bool // the supervisor has looked
	opened    bool // a second look at the ciphertext: the token opens what it sealed itself
	noSession bool // it got no session of its own
	died      bool // the worker died of it, or of what ran beside it
	sought    bool // the worker was replaced to find the key
}

// keyFor gives the key in the present connection. A key that the token does not show is sought in a new worker first, where
// that is to be done.
func (t *Token) keyFor(ctx context.Context, until time.Time, id envelope.KeyID, did *progress) (*generation, *heldKey, error) {
	for {
		gen, err := t.readyUntil(ctx, until, id)
		if err != nil {
			return nil, nil, err
		}
		if held := gen.table.Load().byID[id]; held != nil {
			return gen, held, nil
		}
		if did.sought || !await(ctx, until, t.Seek(id)) {
			return nil, nil, fmt.Errorf("token %s: %w: %s", t.cfg.Name, envelope.ErrUnknownKey, id)
		}
		did.sought = true
	}
}

// await waits until c is closed. false: there is nothing to wait for, or the time is up.
func await(ctx context.Context, until time.Time, c <-chan struct{}) bool {
	if c == nil {
		return false
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// prepareRetry prepares another try after an error, or says what the outcome is.
func (t *Token) prepareRetry(ctx context.Context, until time.Time, gen *generation, held *heldKey, op operation, err error, did *progress) error {
	id := held.key.ID
	_, isCKR := p11.RVOf(err)
	switch {
	case errors.Is(err, errNoMoreSessions): // each time there is one permit less, so it is no loop
		did.noSession = true
		return nil
	case errors.Is(err, errStale):
		return nil // each time there is another connection
	case errors.Is(err, p11.ErrEnded):
		if did.died {
			t.deadly.note(id, &op)
			return t.failed(err)
		}
		did.died = true
		t.condemned(gen, err)
		return nil
	case !isCKR && !errors.Is(err, errUnclosed):
		return err
	}
	if did.noSession { // it was no limit: an operation begun afterwards fails too
		did.noSession = false
		t.restorePermits()
	}
	class := classOf(err)
	if class == classData && op.flawed {
		checkErr := t.confirm(ctx, until, gen, held)
		if checkErr == nil && did.opened {
			return fmt.Errorf("token %s: %w: %w", t.cfg.Name, envelope.ErrUnauthentic, err)
		}
		if checkErr == nil {
			did.opened, did.retried = true, true
			return nil
		}
		err, class = checkErr, classOf(checkErr) // it says nothing of the ciphertext
	}
	if class != classSession {
		t.count(gen, true)
	}
	switch nextStep(class, did.retried, did.checked) {
	case giveUp:
		return t.failed(err)
	case checkFirst:
		did.checked = true
		t.suspected(gen, id, err)
	case retryFresh:
		did.retried = true
	}
	return nil
}

// count counts a call for the rule about tokens of which many calls fail.
func (t *Token) count(gen *generation, failed bool) {
	if why := t.rate.note(failed); why != "" {
		t.requestSwap(gen, why)
	}
}

func (t *Token) failed(err error) error {
	return fmt.Errorf("token %s: %w: %w", t.cfg.Name, envelope.ErrUnavailable, err)
}

// confirm opens, with the same key, what is known to be authentic: does the token refuse this ciphertext, or
// every one? It takes a session of its own, so that the answer does not depend on the one that failed.
func (t *Token) confirm(ctx context.Context, until time.Time, gen *generation, held *heldKey) error {
	_, err := t.once(ctx, until, gen, held, operation{name: "C_Decrypt",
		run: func(api p11.API, _ time.Time, s p11.Session, _ p11.Object) ([]byte, error) {
			return nil, held.reopen(api, s)
		}}, true, t.takeOne)
	return err
}

// once does op on one session. A call that is overdue is abandoned: it costs its session, and its permit until it returns.
func (t *Token) once(ctx context.Context, until time.Time, gen *generation, held *heldKey, op operation, fresh bool, take takePermits) (out []byte, err error) {
	release, err := take(ctx, until)
	if err != nil {
		return nil, err
	}
	keepsPermit := false
	defer func() {
		if !keepsPermit {
			release()
		}
	}()
	if !gen.enter() {
		return nil, errStale
	}
	defer gen.leave()
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	s, err := t.session(ctx, until, gen, fresh)
	if err == nil {
		out, err = op.run(gen.api, until, s, held.handle)
	} else if mayBeLimit(err) && t.burnPermits(gen, hasRV(err, pkcs11.CKR_SESSION_COUNT)) {
		keepsPermit = true
		return nil, fmt.Errorf("%w: %w", errNoMoreSessions, err)
	}
	if overdue, ok := errors.AsType[*p11.Overdue](err); ok {
		keepsPermit = true
		if s != 0 { // it is closed when the call has returned, and counts until then
			if closing, ok := errors.AsType[*p11.Overdue](gen.api.CloseSession(s)); ok {
				overdue = closing
			}
		}
		go func() {
			<-overdue.Returned
			release()
		}()
		if t.common.Observer != nil {
			t.common.Observer.HSMCall(t.cfg.Name, op.name, "abandoned", t.cfg.CallTimeout)
		}
		t.wakeUp() // callers are refused until the supervisor has looked
		return nil, t.outOfTime(ctx)
	}
	if s != 0 {
		t.putBack(gen, s, err)
	}
	if gen.ended() && !errors.Is(err, p11.ErrEnded) {
		clear(out)
		return nil, errStale
	}
	return out, err
}

// readyUntil is ready for an operation with the key, without a timer where there is nothing to wait for.
func (t *Token) readyUntil(ctx context.Context, until time.Time, id envelope.KeyID) (*generation, error) {
	if !t.circuitOpen() {
		t.mu.Lock()
		gen, suspected, suspended := t.gen, t.isSuspected(id), t.suspended[id]
		t.mu.Unlock()
		switch {
		case gen == nil || suspected:
		case suspended != nil:
			return nil, t.keySuspended(id, suspended.err)
		default:
			return gen, nil
		}
	}
	ctx, cancel := context.WithDeadlineCause(ctx, until, errAbandoned)
	defer cancel()
	return t.readyFor(ctx, id)
}

// errStale: the generation ended while the operation ran. Its handle may have named another key by then, so
// whatever came out is thrown away.
var errStale = errors.New("the connection was replaced meanwhile")

// errUnclosed: the token will not close sessions, and no more may be opened beside them.
var errUnclosed = errors.New("as many sessions as maxSessions allows are in use or will not close")

// errNoMoreSessions: the token has no more sessions to give, and others of ours are at work: one of them is waited for.
var errNoMoreSessions = errors.New("the token has no more sessions")

// outOfTime says whose time was up: the caller's, or the token's call time-out.
func (t *Token) outOfTime(ctx context.Context) error {
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		<-ctx.Done() // its timer is a moment late
	}
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), errAbandoned) {
		return fmt.Errorf("token %s: %w: %w (callTimeout is %s)", t.cfg.Name, envelope.ErrUnavailable, errAbandoned, t.cfg.CallTimeout)
	}
	return ctx.Err()
}
