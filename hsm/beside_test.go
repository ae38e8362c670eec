package hsm

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// With NextAfter a slow token does not use up the time of the next one, nor is its answer lost.
func TestAsksBeside(t *testing.T) {
	t.Parallel()
	type token struct {
		takes time.Duration
		fails error
	}
	const budget = 1500 * time.Millisecond
	unknown, down := envelope.ErrUnknownKey, envelope.ErrUnavailable
	for name, c := range map[string]struct {
		tokens []token
		by     string // whose answer it is; "": none
		after  time.Duration
		err    error
	}{
		"the first is quick":        {[]token{{takes: time.Millisecond}, {}}, "a", time.Millisecond, nil},
		"the first fails":           {[]token{{takes: time.Millisecond, fails: down}, {takes: time.Millisecond}}, "b", 2 * time.Millisecond, nil},
		"the first is slow":         {[]token{{takes: time.Second}, {takes: time.Hour}}, "a", time.Second, nil},
		"the first hangs":           {[]token{{takes: time.Hour}, {takes: 500 * time.Millisecond}}, "b", 1200 * time.Millisecond, nil},
		"the last of three answers": {[]token{{takes: time.Hour}, {takes: time.Hour}, {takes: 500 * time.Millisecond}}, "c", 1200 * time.Millisecond, nil},
		"both hang":                 {[]token{{takes: time.Hour}, {takes: time.Hour}}, "", budget, context.DeadlineExceeded},
		"away says more":            {[]token{{fails: unknown}, {fails: down}}, "", 0, down},
		"none has the key":          {[]token{{fails: unknown}, {fails: unknown}}, "", 0, unknown},
		"not authentic":             {[]token{{fails: envelope.ErrUnauthentic}, {}}, "", 0, envelope.ErrUnauthentic},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &Set{common: Config{NextAfter: 700 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}}
				is := map[string]token{}
				for i, of := range c.tokens {
					name := string(rune('a' + i))
					is[name] = of
					s.tokens = append(s.tokens, newToken(TokenConfig{Name: name, MaxSessions: 1}, &s.common))
				}
				dek := []byte("secret")
				kept, wipe := s.keep(dek)
				late := map[string][]byte{}
				began := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), budget)
				out, err := onFirst(ctx, s, wipe, func(ctx context.Context, token *Token) ([]byte, error) {
					of := is[token.cfg.Name]
					time.Sleep(min(of.takes, 2*time.Second)) // a call cannot be cancelled
					if of.fails == nil && of.takes > budget {
						of.fails = ctx.Err()
					}
					if of.fails != nil {
						return nil, of.fails
					}
					if !bytes.Equal(kept, []byte("secret")) {
						t.Error("the plaintext was wiped under a call")
					}
					answer := []byte(token.cfg.Name)
					late[token.cfg.Name] = answer
					return answer, nil
				})
				took := time.Since(began)
				cancel()
				clear(dek)
				if string(out) != c.by || !errors.Is(err, c.err) {
					t.Errorf("%q, %v", out, err)
				}
				if c.err != context.DeadlineExceeded && took != c.after {
					t.Errorf("it took %s, wanted %s", took, c.after)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				for name, answer := range late {
					if name != c.by && answer[0] != 0 {
						t.Errorf("the late answer of %s was not wiped", name)
					}
				}
				if kept[0] != 0 {
					t.Error("the copy of the plaintext was not wiped")
				}
			})
		})
	}
}
