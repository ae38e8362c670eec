package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

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

// statusWhileHung measures Status while every call into the HSM hangs and requests wait for it. The time is long enough
// for calls to be given up and for their refusal to begin.
func statusWhileHung(ctx context.Context, s *subject, t *table) error {
	release := s.fault.HangAll()
	defer release()
	background, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	for range 8 {
		waiting.Go(func() {
			for background.Err() == nil {
				_, _ = s.client.encrypt(background) // fails, as it should: how is not for here
			}
		})
	}
	hung, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	if err := s.fault.WaitHung(hung, firstCall(s.profile), 1); err != nil {
		return err
	}
	got, err := measure.Drive(ctx, load{Clients: 1, Time: callTimeout}, func(int, int) error {
		_, err := s.client.status(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("asking for Status while the HSM hangs: %w", err)
	}
	t.Figure("Status p50 while the HSM hangs", milliseconds(got.P50), "ms", nil)
	t.Figure("Status p99 while the HSM hangs", milliseconds(got.P99), "ms", measure.Below(5))
	return nil
}

func firstCall(profile string) string {
	if profile == profileHMAC {
		return "C_SignInit"
	}
	return "C_EncryptInit"
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
