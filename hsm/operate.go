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
	t.nonces.used(id)
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

// operate does op with the key within the call time-out of the token, retries included. It
// recovers from each fault once: by another session, another generation, a second look at the ciphertext.
func (t *Token) operate(ctx context.Context, id envelope.KeyID, op operation) ([]byte, error) {
	until := time.Now().Add(t.cfg.CallTimeout)
	tried := map[errorClass]bool{}
	if t.deadly.refuses(id, &op) {
		return nil, fmt.Errorf("token %s: %w: %w", t.cfg.Name, envelope.ErrUnavailable, errDeadly)
	}
	died := false
	for {
		if ctx.Err() != nil {
			return nil, t.outOfTime(ctx) // nobody waits for an answer, so the HSM is not asked
		}
		gen, err := t.readyUntil(ctx, until)
		if err != nil {
			return nil, err
		}
		held := gen.table.Load().byID[id]
		if held == nil {
			return nil, fmt.Errorf("token %s: %w: %s", t.cfg.Name, envelope.ErrUnknownKey, id)
		}
		take := t.takeOne
		if died {
			take = t.takeAlone
		}
		out, err := t.once(ctx, until, gen, held, op, len(tried) > 0, take)
		if err == nil {
			return out, nil
		}
		if errors.Is(err, p11.ErrEnded) {
			if died {
				t.deadly.note(id, &op)
			}
			died = true
		}
		if _, isCKR := p11.RVOf(err); !isCKR && !errors.Is(err, errStale) && !errors.Is(err, errUnclosed) && !errors.Is(err, p11.ErrEnded) {
			return nil, err
		}
		if err = t.prepareRetry(ctx, until, gen, held, op, err, tried); err != nil {
			return nil, err
		}
	}
}

// unconfirmed marks in tried that the second look at a ciphertext failed too.
const unconfirmed = classNone

// prepareRetry prepares another try after a fault, or says what the outcome is. tried is what was tried already.
func (t *Token) prepareRetry(ctx context.Context, until time.Time, gen *generation, held *heldKey, op operation, err error, tried map[errorClass]bool) error {
	if errors.Is(err, errCrowded) {
		return nil // no fault; each time there is one permit less, so it is no loop
	}
	class := classOf(err)
	again := tried[class]
	switch {
	case class == classData && op.flawed:
		if checkErr := t.confirm(ctx, until, gen, held); checkErr != nil {
			t.suspected(gen, classData, checkErr)
			if tried[unconfirmed] {
				return t.failed(err)
			}
			tried[unconfirmed] = true // it says nothing of the ciphertext
			return nil
		}
		if again {
			return fmt.Errorf("token %s: %w: %w", t.cfg.Name, envelope.ErrUnauthentic, err)
		}
	case again:
		t.suspected(gen, max(class, classData), err)
		return t.failed(err)
	case class != classSession:
		t.suspected(gen, class, err)
	}
	tried[class] = true
	return nil
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
	if gen.ended() {
		return nil, errStale
	}
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	s, err := t.session(ctx, until, gen, fresh)
	if err == nil {
		out, err = op.run(gen.api, until, s, held.handle)
	} else if hasRV(err, pkcs11.CKR_SESSION_COUNT) && t.burnPermits(gen) {
		keepsPermit = true
		return nil, fmt.Errorf("%w: %w", errCrowded, err)
	}
	if overdue, ok := errors.AsType[*p11.Overdue](err); ok {
		keepsPermit = true
		go func() {
			<-overdue.Returned
			release()
		}()
		if t.common.Observer != nil {
			t.common.Observer.HSMCall(t.cfg.Name, op.name, "abandoned", t.cfg.CallTimeout)
		}
		t.wakeUp() // callers are refused until the supervisor has looked
		if s != 0 {
			_ = gen.api.CloseSession(s) // when it has returned
		}
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

// readyUntil is ready, without a timer where there is nothing to wait for.
func (t *Token) readyUntil(ctx context.Context, until time.Time) (*generation, error) {
	if !t.circuitOpen() {
		t.mu.Lock()
		gen, suspect := t.gen, t.suspect
		t.mu.Unlock()
		if gen != nil && suspect == nil {
			return gen, nil
		}
	}
	ctx, cancel := context.WithDeadlineCause(ctx, until, errAbandoned)
	defer cancel()
	return t.ready(ctx)
}

// errStale: the generation ended while the operation ran. Its handle may have named another key by then, so
// whatever came out is thrown away.
var errStale = errors.New("the connection was replaced meanwhile")

// errUnclosed: the token will not close sessions, and no more may be opened beside them.
var errUnclosed = errors.New("as many sessions as maxSessions allows are in use or will not close")

// errCrowded: the token has no more sessions to give, and others of ours are at work: one of them is waited for.
var errCrowded = errors.New("the token has no more sessions")

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
