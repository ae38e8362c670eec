package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// growthDelay is what a call takes longer where the sessions grow: without it the processors are the limit, not the sessions.
const growthDelay = 2 * time.Millisecond

// growth measures how the plugin grows with one thing at a time: versions of the ring, tokens, sessions, connections.
func (w *rig) growth(ctx context.Context, t *table) error {
	for _, part := range []func(context.Context, *table) error{w.growKeys, w.growTokens, w.growSessions, w.growConnections} {
		if err := part(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// small is a subject without what stands beside it. extra is more of the configuration of its first token, and more tokens.
func (w *rig) small(dir string, token *softhsm.Token, delay bool, extra string) (*subject, error) {
	s := &subject{profile: profileGCM}
	seen := *token
	var err error
	if s.fault, err = install(filepath.Join(dir, "f"), token); err != nil {
		return nil, err
	}
	if delay {
		s.fault.DelayAll(growthDelay)
	}
	seen.Module = s.fault.Path()
	s.plugin, err = plugin.New(plugin.Options{Bin: w.options.Bin, Dir: filepath.Join(dir, "p"), Token: &seen, Extra: steady, TokenExtra: extra})
	return s, err
}

// grown starts the subject and adds one row: the start, p50 with one client, the rate with so many, and what it holds.
func (w *rig) grown(ctx context.Context, t *table, s *subject, what string, clients int) error {
	tell("growth: " + what)
	var took []float64
	for range 3 {
		if len(took) > 0 {
			if err := s.stop(); err != nil {
				return err
			}
		}
		d, err := s.serve(ctx)
		if err != nil {
			return err
		}
		took = append(took, milliseconds(d))
	}
	if err := w.grownNow(ctx, t, s, what, clients, measure.Number(measure.Median(took))+" ms"); err != nil {
		return err
	}
	return s.stop()
}

// grownNow is grown of a subject that serves.
func (w *rig) grownNow(ctx context.Context, t *table, s *subject, what string, clients int, start string) error {
	if err := s.client.seal(ctx, sealedDEKs); err != nil {
		return err
	}
	row := []string{what, start}
	for _, op := range []string{opEncrypt, opDecrypt} {
		one, err := s.client.measure(ctx, op, load{Clients: 1, Time: w.options.slice})
		if err != nil {
			return err
		}
		many, err := s.client.measure(ctx, op, load{Clients: clients, Time: w.options.slice})
		if err != nil {
			return err
		}
		row = append(row, micros(p50(one)), whole(many.Rate()))
		name := measure.Joined(what)
		t.growthLines = append(t.growthLines, fmt.Sprintf("BenchmarkGrowth/%s/op=%s %d %d p50-ns %.1f ops/s", name, op, one.Ops, one.P50.Nanoseconds(), many.Rate()))
	}
	held, err := s.resources()
	if err != nil {
		return err
	}
	t.grown = append(t.grown, append(row, fmt.Sprint(clients), fmt.Sprintf("%.1f", held.AnonMiB), fmt.Sprint(held.Threads), fmt.Sprint(held.Files), fmt.Sprint(held.Sessions)))
	return nil
}

// growthHeading is that of the rows.
func growthHeading() []string {
	return []string{"", "start", "Encrypt p50 in us", "/s", "Decrypt p50 in us", "/s", "clients of /s", "RssAnon MiB", "threads", "descriptors", "sessions"}
}

func (w *rig) growKeys(ctx context.Context, t *table) error {
	dir := filepath.Join(w.dir, "gk")
	token, err := softhsm.New(ctx, filepath.Join(dir, "t"), "bench", "")
	if err != nil {
		return err
	}
	s, err := w.small(dir, token, false, "")
	if err != nil {
		return err
	}
	have := 0
	for _, keys := range []int{1, 10, 50, 100, 200, 400} {
		if err := w.makeKeys(ctx, dir, token, keys-have); err != nil {
			return err
		}
		have = keys
		if err := w.grown(ctx, t, s, counted(keys, "key version"), 8); err != nil {
			return err
		}
	}
	return nil
}

// growTokens has every token hold the same key: copies of one.
func (w *rig) growTokens(ctx context.Context, t *table) error {
	dir := filepath.Join(w.dir, "gt")
	token, err := w.tokenWithKey(ctx, dir)
	if err != nil {
		return err
	}
	more := []string{"maxSessions: 8"}
	for n := 1; n <= 8; n++ {
		if n > 1 {
			one, err := another(token, dir, n)
			if err != nil {
				return err
			}
			more = append(more, one)
		}
		if n&(n-1) != 0 {
			continue
		}
		s, err := w.small(filepath.Join(dir, fmt.Sprint("n", n)), token, false, tokens(more...))
		if err != nil {
			return err
		}
		if err := w.grown(ctx, t, s, counted(n, "token"), 8); err != nil {
			return err
		}
	}
	return nil
}

// tokenWithKey makes a token with one key of the ring.
func (w *rig) tokenWithKey(ctx context.Context, dir string) (*softhsm.Token, error) {
	token, err := softhsm.New(ctx, filepath.Join(dir, "t"), "bench", "")
	if err != nil {
		return nil, err
	}
	return token, w.makeKeys(ctx, dir, token, 1)
}

// another makes a copy of the token, and is its configuration. It is the nth, and it has a module of its own: a token of a module
// with another path is another token.
func another(token *softhsm.Token, dir string, n int) (string, error) {
	other, err := token.CopyTo(filepath.Join(dir, fmt.Sprint("t", n)))
	if err != nil {
		return "", err
	}
	module, err := install(filepath.Join(dir, fmt.Sprint("f", n)), other)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("name: t%d, module: %q, label: %q, pinFile: %q, env: {SOFTHSM2_CONF: %q}", n, module.Path(), other.Label, other.PINFile, other.Conf()), nil
}

// tokens is more of the first token's configuration, and that of others.
func tokens(each ...string) string { return strings.Join(each, "}\n  - {") }

func (w *rig) growSessions(ctx context.Context, t *table) error {
	dir := filepath.Join(w.dir, "gs")
	token, err := w.tokenWithKey(ctx, dir)
	if err != nil {
		return err
	}
	for _, n := range []int{1, 2, 4, 8, 16, 32, 64} {
		s, err := w.small(filepath.Join(dir, fmt.Sprint("n", n)), token, true, fmt.Sprintf("maxSessions: %d", n))
		if err != nil {
			return err
		}
		if err := w.grown(ctx, t, s, fmt.Sprintf("%s, %s per call", counted(n, "session"), growthDelay), 64); err != nil {
			return err
		}
	}
	return nil
}

// growConnections makes so many connections, each of which asks for a Status once and then nothing. The plugin keeps as many as
// its limit allows.
func (w *rig) growConnections(ctx context.Context, t *table) error {
	dir := filepath.Join(w.dir, "gc")
	token, err := w.tokenWithKey(ctx, dir)
	if err != nil {
		return err
	}
	s, err := w.small(dir, token, false, "")
	if err != nil {
		return err
	}
	if _, err := s.serve(ctx); err != nil {
		return err
	}
	var idle []*client
	defer func() {
		for _, c := range idle {
			c.close()
		}
	}()
	for _, n := range []int{1, 10, 100, 1000} {
		for len(idle) < n-1 {
			c, err := dial(s.plugin.Socket())
			if err != nil {
				return err
			}
			idle = append(idle, c)
			if _, err := c.status(ctx); err != nil {
				return err
			}
		}
		tell("growth: " + counted(n, "connection"))
		s.client.sealed = slices.Clip(s.client.sealed[:0])
		if err := w.grownNow(ctx, t, s, counted(n, "connection"), 8, "-"); err != nil {
			return err
		}
	}
	return s.stop()
}
