package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// judgedDelay is what a call takes longer where limits hold; at the others one round is a look.
const judgedDelay = 5 * time.Millisecond

// slow measures both profiles on a token whose every call takes longer, and what is counted.
func (w *rig) slow(ctx context.Context, t *table) error {
	var subjects []*subject
	for _, profile := range []string{profileGCM, profileHMAC} {
		s, err := w.start(ctx, setup{
			name: "slow-" + profile, profile: profile, faulty: true, extra: steady, token: fmt.Sprintf("maxSessions: %d", manySessions),
		})
		if err != nil {
			return err
		}
		subjects = append(subjects, s)
		if err := callsPerOperation(ctx, s, t); err != nil {
			return err
		}
	}
	gcm := subjects[0]
	if err := idleCalls(ctx, gcm, t); err != nil {
		return err
	}
	if err := sessions(ctx, gcm, t); err != nil {
		return err
	}
	for _, delay := range []time.Duration{time.Millisecond, judgedDelay, 20 * time.Millisecond} {
		for _, s := range subjects {
			s.delay(delay)
		}
		rounds := 1
		if delay == judgedDelay {
			rounds = max(w.options.rounds/3, 1)
		}
		p := plan{
			subjects: subjects, clients: []int{1, 8, 32}, rounds: rounds, delay: delay,
			// At the end of a turn clients stand idle until the last call is back: a turn has to be many calls long.
			slice: w.options.slice + 20*delay,
		}
		if err := p.run(ctx, w.n, t.measured, tell); err != nil {
			return err
		}
		for _, s := range subjects {
			s.delay(0)
		}
	}
	for _, s := range subjects {
		for _, op := range []string{opEncrypt, opDecrypt} {
			at := func(clients int) point { return point{whoPlugin, s.profile, op, clients, judgedDelay} }
			t.Figure(fmt.Sprintf("%s, %s, 5 ms per call, p50 with 1 client", s.profile, op), t.measured.median(at(1), p50)/1e6, "ms", measure.AtMost(10.7))
			t.Figure(fmt.Sprintf("%s, %s, 5 ms per call, p99 with 8 clients", s.profile, op), t.measured.median(at(8), p99OfP50), "x p50", measure.AtMost(1.5))
			t.Figure(fmt.Sprintf("%s, %s, 5 ms per call, rate with 32 clients", s.profile, op), t.measured.median(at(32), sample.Rate), "per second", measure.AtLeast(3000))
		}
	}
	for _, delay := range []time.Duration{0, judgedDelay} {
		tell(fmt.Sprintf("cold start, %s per PKCS#11 call more", delay))
		if err := coldStart(ctx, gcm, w.options.deks, delay, t); err != nil {
			return err
		}
	}
	return nil
}

// cryptoCalls are the calls that use a key.
var cryptoCalls = [...]string{"C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt", "C_SignInit", "C_Sign"}

func keyUses(m *faultp11.Module) int {
	n := 0
	for _, function := range cryptoCalls {
		n += m.Calls(function)
	}
	return n
}

// callsPerOperation counts what a network HSM would see of one Encrypt and one Decrypt. The subject must not probe or
// refresh meanwhile.
func callsPerOperation(ctx context.Context, s *subject, t *table) error {
	const ops = 200
	for _, op := range []string{opEncrypt, opDecrypt} {
		before := s.fault.TotalCalls()
		if _, err := s.client.measure(ctx, op, load{Clients: 1, Ops: ops}); err != nil {
			return err
		}
		calls := float64(s.fault.TotalCalls()-before) / ops
		t.Figure("PKCS#11 calls per "+op+", "+s.profile, calls, "calls", measure.AtMost(2))
	}
	return nil
}

// idleCalls asks for Status and counts what the HSM sees of it.
func idleCalls(ctx context.Context, s *subject, t *table) error {
	const asked = 10_000
	uses, all := keyUses(s.fault), s.fault.TotalCalls()
	if _, err := s.client.measure(ctx, opStatus, load{Clients: 8, Ops: asked}); err != nil {
		return err
	}
	t.Figure(fmt.Sprintf("HSM crypto calls while Status is asked %d times", asked), float64(keyUses(s.fault)-uses), "calls", measure.AtMost(0))
	t.Figure("all PKCS#11 calls meanwhile", float64(s.fault.TotalCalls()-all), "calls", measure.AtMost(0))
	return nil
}

// sessions counts them: after the start, and under twice as many clients as there may be sessions.
func sessions(ctx context.Context, s *subject, t *table) error {
	t.Figure("sessions after the start, none at work", float64(s.fault.OpenSessions()), "sessions", measure.AtMost(2))
	s.fault.ResetCounters()
	s.delay(time.Millisecond)
	defer s.delay(0)
	if _, err := s.client.measure(ctx, opEncrypt, load{Clients: 2 * manySessions, Ops: 40 * manySessions}); err != nil {
		return err
	}
	t.Figure(fmt.Sprintf("most sessions with %d clients and maxSessions %d (one more is for login)", 2*manySessions, manySessions),
		float64(s.fault.MaxOpenSessions()), "sessions", measure.AtMost(manySessions+1))
	return nil
}

// coldStart has a plugin that was just started open so many distinct DEKs, as an API server with an empty cache does.
func coldStart(ctx context.Context, s *subject, deks int, delay time.Duration, t *table) error {
	if missing := deks - len(s.client.sealed); missing > 0 {
		if err := s.client.seal(ctx, missing); err != nil {
			return err
		}
	}
	for _, clients := range []int{1, 32} {
		s.delay(0) // the start itself is another figure
		if _, err := s.restart(ctx); err != nil {
			return err
		}
		s.delay(delay)
		got, err := s.client.measure(ctx, opDecrypt, load{Clients: clients, Ops: deks})
		s.delay(0)
		if err != nil {
			return err
		}
		t.Figure(fmt.Sprintf("cold start: %d DEKs, %s more per call, %s", deks, delay, counted(clients, "client")), got.Elapsed.Seconds(), "s", nil)
	}
	return nil
}
