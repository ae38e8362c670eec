package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/noncememory"
)

// Set is the tokens of a ring in the order of preference, as envelope.Tokens: an operation goes to the first
// that is healthy and holds the key, and moves on when it fails. A key_id carries the fingerprint of the key's
// material, so a token that is found to hold it has proven that it is the same key.
type Set struct {
	common Config
	tokens []*Token
}

// Open prepares the tokens; Run does the rest.
func Open(common Config, tokens []TokenConfig) *Set {
	if common.Log == nil {
		common.Log = slog.Default()
	}
	if common.MaxWaiting == 0 {
		common.MaxWaiting = defaultMaxWaiting
	}
	if common.launch == nil {
		common.launch = launch
	}
	if common.viewAge == 0 {
		common.viewAge = defaultViewAge
	}
	s := &Set{common: common}
	s.common.memory = noncememory.New(common.StateDir)
	for _, cfg := range tokens {
		s.tokens = append(s.tokens, newToken(cfg, &s.common))
	}
	return s
}

// Run keeps the tokens connected until ctx ends, and returns when every worker has ended.
func (s *Set) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, t := range s.tokens {
		wg.Go(func() { t.run(ctx) })
	}
	wg.Wait()
}

// Start is Run in the background. It goes on when ctx ends, because what is to be drained still needs the tokens: stop
// ends it, and waits until it has ended.
func (s *Set) Start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// Connected waits until every token has been tried once, and returns what is wrong with those that cannot be
// used, by their order; nil for one that can.
func (s *Set) Connected(ctx context.Context) []error {
	problems := make([]error, len(s.tokens))
	for i, t := range s.tokens {
		select {
		case <-t.tried:
			problems[i] = t.Problem()
			continue
		default:
		}
		select {
		case <-t.tried:
			problems[i] = t.Problem()
		case <-ctx.Done():
			problems[i] = fmt.Errorf("token %s: %w: it has not answered: %w", t.cfg.Name, envelope.ErrUnavailable, ctx.Err())
		}
	}
	return problems
}

var _ envelope.Tokens = (*Set)(nil)

// Members implements envelope.Tokens.
func (s *Set) Members() []envelope.Token {
	members := make([]envelope.Token, len(s.tokens))
	for i, t := range s.tokens {
		members[i] = t
	}
	return members
}

// Serials are the serial numbers of the tokens that can be used, by name.
func (s *Set) Serials() map[string]string {
	serials := map[string]string{}
	for _, t := range s.tokens {
		t.mu.Lock()
		if t.gen != nil {
			serials[t.cfg.Name] = t.gen.serial
		}
		t.mu.Unlock()
	}
	return serials
}

// Name implements envelope.Token.
func (s *Set) Name() string { return "all tokens" }

// Generation implements envelope.Token: that of the first token that can be used.
func (s *Set) Generation() uint64 {
	for _, t := range s.tokens {
		if g := t.Generation(); g != 0 {
			return g
		}
	}
	return 0
}

// Problem implements envelope.Token: what is wrong with each token when none can be used.
func (s *Set) Problem() error {
	var errs []error
	for _, t := range s.tokens {
		err := t.Problem()
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Keys implements envelope.Token: those of the first token that can be read.
func (s *Set) Keys(ctx context.Context) ([]envelope.Key, error) {
	return onFirst(ctx, s, nil, func(ctx context.Context, t *Token) ([]envelope.Key, error) { return t.Keys(ctx) })
}

// EncryptGCM implements envelope.Token.
func (s *Set) EncryptGCM(ctx context.Context, id envelope.KeyID, nonce *[envelope.NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	plaintext, wipe := s.keep(plaintext)
	return onFirst(ctx, s, wipe, func(ctx context.Context, t *Token) ([]byte, error) {
		return t.EncryptGCM(ctx, id, nonce, associated, plaintext)
	})
}

// EncryptOwnNonce implements envelope.Token.
func (s *Set) EncryptOwnNonce(ctx context.Context, id envelope.KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	plaintext, wipe := s.keep(plaintext)
	both, err := onFirst(ctx, s, wipe, func(ctx context.Context, t *Token) (both [2][]byte, err error) {
		both[0], both[1], err = t.EncryptOwnNonce(ctx, id, associated, plaintext)
		return both, err
	})
	return both[0], both[1], err
}

// DecryptGCM implements envelope.Token.
func (s *Set) DecryptGCM(ctx context.Context, id envelope.KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	return onFirst(ctx, s, nil, func(ctx context.Context, t *Token) ([]byte, error) {
		return t.DecryptGCM(ctx, id, nonce, associated, sealed)
	})
}

// EncryptBlocks implements envelope.Token.
func (s *Set) EncryptBlocks(ctx context.Context, id envelope.KeyID, blocks []byte) ([]byte, error) {
	return onFirst(ctx, s, nil, func(ctx context.Context, t *Token) ([]byte, error) { return t.EncryptBlocks(ctx, id, blocks) })
}

// MAC implements envelope.Token.
func (s *Set) MAC(ctx context.Context, id envelope.KeyID, data []byte) ([envelope.MACSize]byte, error) {
	return onFirst(ctx, s, nil, func(ctx context.Context, t *Token) ([envelope.MACSize]byte, error) { return t.MAC(ctx, id, data) })
}

// onFirst does f on one token after the other until one does not fail for want of itself. Each but the last
// gets an equal share of the time that is left, so that one that hangs leaves time for the next; with NextAfter the next one is
// asked beside it. after, if not nil, is called when f has returned everywhere.
func onFirst[T any](ctx context.Context, s *Set, after func(), f func(context.Context, *Token) (T, error)) (T, error) {
	if s.asksBeside() {
		return beside(ctx, s, after, f)
	}
	if after != nil {
		defer after()
	}
	var none T
	var errs []error
	for i, t := range s.inOrder() {
		out, err := withShare(ctx, len(s.tokens)-i, func(ctx context.Context) (T, error) { return f(ctx, t) })
		if err == nil || errors.Is(err, envelope.ErrUnauthentic) {
			return out, err
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return none, worst(errs)
}

// asksBeside reports whether a token is asked while another one has not answered yet.
func (s *Set) asksBeside() bool { return s.common.NextAfter > 0 && len(s.tokens) > 1 }

// keep returns the plaintext for f of onFirst: a copy where f may outlive its caller, who wipes his own.
func (s *Set) keep(plaintext []byte) (kept []byte, wipe func()) {
	if !s.asksBeside() {
		return plaintext, nil
	}
	kept = bytes.Clone(plaintext)
	return kept, func() { clear(kept) }
}

// asked is what became of f on one token.
type asked[T any] struct {
	out T
	err error
}

// beside is onFirst where NextAfter is set.
func beside[T any](ctx context.Context, s *Set, after func(), f func(context.Context, *Token) (T, error)) (none T, err error) {
	tokens := s.inOrder()
	answers := make(chan asked[T], len(tokens))
	pause := s.common.NextAfter / time.Duration(len(tokens)-1)
	begun, ended := 0, 0
	timer := time.NewTimer(pause)
	defer timer.Stop()
	next := func() {
		if begun == len(tokens) {
			return
		}
		t := tokens[begun]
		begun++
		timer.Reset(pause)
		go func() {
			out, err := f(ctx, t)
			answers <- asked[T]{out, err}
		}()
	}
	defer func() { go wipeLate(answers, begun-ended, after) }()
	next()
	var errs []error
	for ended < begun {
		select {
		case <-timer.C:
			next()
		case a := <-answers:
			ended++
			if a.err == nil || errors.Is(a.err, envelope.ErrUnauthentic) {
				return a.out, a.err
			}
			errs = append(errs, a.err)
			if ctx.Err() == nil {
				next()
			}
		}
	}
	return none, worst(errs)
}

// wipeLate wipes n answers for which nobody waits.
func wipeLate[T any](answers <-chan asked[T], n int, after func()) {
	for range n {
		if out, ok := any((<-answers).out).([]byte); ok {
			clear(out)
		}
	}
	if after != nil {
		after()
	}
}

// inOrder is the tokens in the order in which they are asked: that of the configuration, but a token that is being
// connected or looked into comes after those that can serve at once.
func (s *Set) inOrder() []*Token {
	if len(s.tokens) == 1 || s.tokens[0].settled() {
		return s.tokens
	}
	var settled, others []*Token
	for _, t := range s.tokens {
		if t.settled() {
			settled = append(settled, t)
		} else {
			others = append(others, t)
		}
	}
	return append(settled, others...)
}

// withShare gives f one part in shares of the time that is left of ctx.
func withShare[T any](ctx context.Context, shares int, f func(context.Context) (T, error)) (T, error) {
	deadline, limited := ctx.Deadline()
	if shares <= 1 || !limited {
		return f(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, time.Until(deadline)/time.Duration(shares), errAbandoned)
	defer cancel()
	return f(ctx)
}

// worst joins the errors of all tokens so that the one that says most comes first: a token that was asked and
// does not hold the key says more than one that could not be asked only when no other is left that might hold it.
func worst(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	var away, known []error
	for _, err := range errs {
		if errors.Is(err, envelope.ErrUnknownKey) {
			known = append(known, err)
		} else {
			away = append(away, err)
		}
	}
	if len(away) > 0 {
		return errors.Join(away...)
	}
	return errors.Join(known...)
}
