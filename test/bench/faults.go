package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

const (
	askers = 16 // clients that ask while something goes wrong; more than there are sessions
	// pluginTimeout is the default of callTimeout.
	pluginTimeout = 2 * time.Second
	replacements  = 100
)

// deaths are the ways in which a library ends its process.
var deaths = [...]struct {
	name string
	how  faultp11.Death
}{{"crashes", faultp11.Segfault}, {"aborts", faultp11.Abort}, {"exits", faultp11.Exit}}

// faults measures what clients notice when the library dies or hangs, or when its successor is slow to start, and what the
// plugin holds after many replacements. Each part has a plugin of its own: the pauses between replacements grow.
func (w *rig) faults(ctx context.Context, t *table) error {
	dir := filepath.Join(w.dir, "b")
	token, err := w.tokenWithKey(ctx, dir)
	if err != nil {
		return err
	}
	second, err := another(token, dir, 2)
	if err != nil {
		return err
	}
	connect := fmt.Sprintf("connectTimeout: %s", w.options.initialize+eventTimeout)
	one, err := w.small(filepath.Join(dir, "1"), token, false, connect)
	if err != nil {
		return err
	}
	two, err := w.small(filepath.Join(dir, "2"), token, false, tokens(connect, second))
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{
		func(ctx context.Context) error { return dying(ctx, one, t, "one token", measure.Below(300), nil) },
		func(ctx context.Context) error { return dying(ctx, two, t, "two tokens", nil, measure.AtMost(0)) },
		func(ctx context.Context) error { return hanging(ctx, one, t, "one token") },
		func(ctx context.Context) error { return hanging(ctx, two, t, "two tokens") },
		func(ctx context.Context) error { return statusWhileHung(ctx, one, t) },
		func(ctx context.Context) error { return replacing(ctx, one, t, 0) },
		func(ctx context.Context) error { return replacing(ctx, one, t, w.options.initialize) },
		func(ctx context.Context) error { return replacedOften(ctx, one, t) },
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// underLoad starts the plugin and has clients ask while do does something to it.
func (s *subject) underLoad(ctx context.Context, do func(a *asking) error, ops ...string) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	a := s.client.ask(ctx, askers, ops...)
	err := a.each(ctx, 8)
	if err == nil {
		a.look()
		err = do(a)
	}
	s.fault.Clear() // what hangs would keep clients waiting, and the plugin from its end
	a.end()
	if err != nil {
		return err
	}
	return s.stop()
}

// begin starts the plugin and makes DEKs to ask for.
func (s *subject) begin(ctx context.Context) error {
	if _, err := s.serve(ctx); err != nil {
		return err
	}
	return s.client.seal(ctx, sealedDEKs)
}

// outage adds the figures of a fault.
func (t *table) outage(what string, o outage, longest, failed *measure.Limit) {
	t.Figure(what+": longest time without an answer", milliseconds(o.Longest), "ms", longest)
	t.Figure(what+": failed requests", float64(o.Failed), "requests", failed)
	if o.First != nil {
		t.note(fmt.Sprintf("%s: the first failure: %v", what, o.First))
	}
}

// dying has the library die five times by each means.
func dying(ctx context.Context, s *subject, t *table, tokens string, longest, failed *measure.Limit) error {
	return s.underLoad(ctx, func(a *asking) error {
		for _, death := range deaths {
			what := fmt.Sprintf("library %s under load, %s", death.name, tokens)
			tell(what)
			for range 5 {
				if err := s.die(ctx, a, death.how); err != nil {
					return err
				}
			}
			t.outage(what, a.look(), longest, failed)
		}
		return nil
	}, opEncrypt, opDecrypt)
}

// die has the library die in a call, and waits until all that was asked meanwhile is answered.
func (s *subject) die(ctx context.Context, a *asking, how faultp11.Death) error {
	died := s.fault.Injected("C_Encrypt")
	s.fault.Die("C_Encrypt", how).Once()
	if err := until(ctx, eventTimeout, "the library's end", func() bool { return s.fault.Injected("C_Encrypt") > died }); err != nil {
		return err
	}
	return a.each(ctx, 8)
}

// hanging has every call of one worker hang: all its sessions are in a call, and those of its successor do not hang.
func hanging(ctx context.Context, s *subject, t *table, tokens string) error {
	what := "every call of one worker hangs, " + tokens
	tell(what)
	return s.underLoad(ctx, func(a *asking) error {
		s.fault.HangCall("C_EncryptInit").Times(usualSessions)
		got, err := s.client.measure(ctx, opStatus, load{Clients: 1, Time: pluginTimeout})
		if err != nil {
			return err
		}
		if n := s.fault.Injected("C_EncryptInit"); n != usualSessions {
			return fmt.Errorf("%d calls hang, not %d: what was measured is not what was meant", n, usualSessions)
		}
		if err := a.each(ctx, 8); err != nil {
			return err
		}
		t.outage(what, a.look(), measure.AtMost(milliseconds(pluginTimeout+time.Second)), nil)
		t.status(what, got)
		return nil
	}, opEncrypt) // Decrypts would share the hangs with their own function, and leave some to the successor
}

// statusWhileHung measures Status while every call of any caller hangs, for long enough that calls are given up and requests
// are refused.
func statusWhileHung(ctx context.Context, s *subject, t *table) error {
	what := "every call of every worker hangs"
	tell(what)
	return s.underLoad(ctx, func(*asking) error {
		s.fault.HangAll()
		got, err := s.client.measure(ctx, opStatus, load{Clients: 1, Time: callTimeout})
		t.status(what, got)
		return err
	}, opEncrypt)
}

func (t *table) status(what string, got sample) {
	t.Figure(what+": Status p50", milliseconds(got.P50), "ms", nil)
	t.Figure(what+": Status p99", milliseconds(got.P99), "ms", measure.Below(5))
}

// replacing has a worker replaced that serves, by one whose library needs so long for C_Initialize. A request with a key_id that
// the token does not show asks for it: the key could have been made since the library read its keys.
func replacing(ctx context.Context, s *subject, t *table, initialize time.Duration) error {
	what := fmt.Sprintf("worker replaced under load, C_Initialize takes %s", initialize)
	tell(what)
	return s.underLoad(ctx, func(a *asking) error {
		s.fault.Delay("C_Initialize", initialize)
		first := s.fault.Processes()
		if err := s.askForUnknownKey(ctx); err != nil {
			return err
		}
		if err := until(ctx, initialize+eventTimeout, "another worker in the first one's place", func() bool {
			now := s.fault.Processes()
			return len(now) == 1 && !slices.Equal(now, first)
		}); err != nil {
			return err
		}
		if err := a.each(ctx, 8); err != nil {
			return err
		}
		t.outage(what, a.look(), nil, measure.AtMost(0))
		return nil
	}, opEncrypt, opDecrypt)
}

// askForUnknownKey has a DEK decrypted under a key that does not exist. It fails, sooner or later.
func (s *subject) askForUnknownKey(ctx context.Context) error {
	ckaID, err := envelope.NewCKAID(time.Now())
	if err != nil {
		return err
	}
	version, err := envelope.VersionOf(ckaID)
	if err != nil {
		return err
	}
	id := envelope.KeyID{Ring: ringName, Version: version}
	request := &kmsapi.DecryptRequest{Ciphertext: s.client.sealed[0].Ciphertext, KeyId: id.String(), Uid: requestUID}
	if err := s.client.decrypt(ctx, request); err == nil {
		return fmt.Errorf("%s was decrypted under", id)
	}
	return nil
}

// replacedOften has the worker replaced many times, because its library died, and compares what is held then with what is held
// after the first time, both while nobody asks.
func replacedOften(ctx context.Context, s *subject, t *table) error {
	tell(fmt.Sprintf("%d replacements", replacements))
	if err := s.begin(ctx); err != nil {
		return err
	}
	for _, op := range []string{opEncrypt, opDecrypt} { // so that pools are filled
		if _, err := s.client.measure(ctx, op, load{Clients: askers, Ops: 10_000}); err != nil {
			return err
		}
	}
	first, err := s.replaced(ctx, 1)
	if err != nil {
		return err
	}
	last, err := s.replaced(ctx, replacements-1)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("after %d replacements, more than after one: ", replacements)
	t.Figure(what+"processes", float64(last.Processes-first.Processes), "processes", measure.AtMost(0))
	t.Figure(what+"descriptors", float64(last.Files-first.Files), "fds", measure.AtMost(0))
	t.Figure(what+"threads", float64(last.Threads-first.Threads), "threads", measure.AtMost(4))
	t.Figure(what+"RssAnon", last.AnonMiB-first.AnonMiB, "MiB", measure.Below(2))
	return s.stop()
}

// replaced has the library die so many times while clients ask, and gives what is held when they have ended.
func (s *subject) replaced(ctx context.Context, times int) (resources, error) {
	a := s.client.ask(ctx, askers, opEncrypt, opDecrypt)
	defer a.end()
	for i := range times {
		if err := s.die(ctx, a, deaths[i%len(deaths)].how); err != nil {
			return resources{}, fmt.Errorf("replacement %d of %d: %w", i+1, times, err)
		}
	}
	a.end()
	if err := until(ctx, eventTimeout, "a single worker", func() bool { return len(s.fault.Processes()) == 1 }); err != nil {
		return resources{}, err
	}
	return s.resources()
}
