package envelope

import (
	"context"
	"sync"
	"testing"
	"time"
)

// softTokens is Tokens in the simplest way that is right: the first member that can do it does it.
type softTokens []*softToken

func (s softTokens) Members() []Token {
	var members []Token
	for _, t := range s {
		members = append(members, t)
	}
	return members
}

func (s softTokens) Name() string { return "all" }

func (s softTokens) Generation() uint64 {
	for _, t := range s {
		if g := t.Generation(); g != 0 {
			return g
		}
	}
	return 0
}

func (s softTokens) Problem() error {
	_, err := onFirstSoft(s, func(t *softToken) (struct{}, error) { return struct{}{}, t.Problem() })
	return err
}

func (s softTokens) Keys(ctx context.Context) ([]Key, error) {
	return onFirstSoft(s, func(t *softToken) ([]Key, error) { return t.Keys(ctx) })
}

func (s softTokens) EncryptGCM(ctx context.Context, id KeyID, nonce *[NonceSize]byte, associated, plaintext []byte) ([]byte, error) {
	return onFirstSoft(s, func(t *softToken) ([]byte, error) { return t.EncryptGCM(ctx, id, nonce, associated, plaintext) })
}

func (s softTokens) DecryptGCM(ctx context.Context, id KeyID, nonce, associated, sealed []byte) ([]byte, error) {
	return onFirstSoft(s, func(t *softToken) ([]byte, error) { return t.DecryptGCM(ctx, id, nonce, associated, sealed) })
}

func (s softTokens) EncryptOwnNonce(ctx context.Context, id KeyID, associated func(int) []byte, plaintext []byte) (nonce, sealed []byte, err error) {
	nonce, err = onFirstSoft(s, func(t *softToken) (nonce []byte, err error) {
		nonce, sealed, err = t.EncryptOwnNonce(ctx, id, associated, plaintext)
		return nonce, err
	})
	return nonce, sealed, err
}

func (s softTokens) EncryptBlocks(ctx context.Context, id KeyID, blocks []byte) ([]byte, error) {
	return onFirstSoft(s, func(t *softToken) ([]byte, error) { return t.EncryptBlocks(ctx, id, blocks) })
}

func (s softTokens) MAC(ctx context.Context, id KeyID, data []byte) ([MACSize]byte, error) {
	return onFirstSoft(s, func(t *softToken) ([MACSize]byte, error) { return t.MAC(ctx, id, data) })
}

func onFirstSoft[T any](s softTokens, f func(*softToken) (T, error)) (out T, err error) {
	for _, t := range s {
		if out, err = f(t); err == nil {
			return out, nil
		}
	}
	return out, err
}

// clock is a time that only moves when it is told to.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

// noon is when tests begin.
var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func newClock() *clock { return &clock{now: noon} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// newSoftRing makes ring "r", profile aes-gcm, on the tokens, and reads it.
func newSoftRing(t *testing.T, c *clock, cfg RingConfig, tokens ...*softToken) *Ring {
	t.Helper()
	cfg.Name, cfg.Profile, cfg.Now = "r", AESGCM, c.Now
	r := NewRing(cfg, softTokens(tokens))
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}
