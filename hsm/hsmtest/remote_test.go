package hsmtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

// healing is how long a token that is back may take to be used again.
const healing = 10 * time.Second

// sealed is what was wrapped before a fault: it must open after it, under the same key_id.
type sealed struct {
	id      envelope.KeyID
	wrapped []byte
}

func seal(t *testing.T, d *hsmtest.Driver) sealed {
	t.Helper()
	id := d.Ready()
	wrapped, err := d.Ring.Seal(t.Context(), id, []byte("a DEK"))
	if err != nil {
		t.Fatal(err)
	}
	return sealed{id, wrapped}
}

// open opens the envelope; another DEK than the one that was sealed is an error that is no outage.
func (s sealed) open(d *hsmtest.Driver) error {
	dek, err := d.Ring.Open(context.Background(), s.id.String(), s.wrapped)
	if err == nil && string(dek) != "a DEK" {
		return fmt.Errorf("the envelope opened to %q", dek)
	}
	return err
}

// mustHeal waits until the envelope opens again and the ring says the same as before.
func (s sealed) mustHeal(t *testing.T, d *hsmtest.Driver, after string) {
	t.Helper()
	took := d.Eventually(healing, "healing after "+after, func() error {
		err := s.open(d)
		if err != nil && !errors.Is(err, envelope.ErrUnavailable) {
			t.Fatalf("after %s: %v", after, err)
		}
		return err
	})
	if id := d.Ready(); id != s.id {
		t.Errorf("key_id %s after %s, %s before", id, after, s.id)
	}
	t.Logf("healed %s after %s", took.Round(time.Millisecond), after)
}

// mustBeAway waits until the token is known to be unusable, and sees that every answer until then says so.
func (s sealed) mustBeAway(t *testing.T, d *hsmtest.Driver, why string) {
	t.Helper()
	d.Eventually(healing, "noticing "+why, func() error {
		start := time.Now()
		err := s.open(d)
		if !errors.Is(err, envelope.ErrUnavailable) {
			t.Fatalf("%s: %v", why, err)
		}
		if took := time.Since(start); took > callTimeout+time.Second {
			t.Errorf("%s: the answer took %s", why, took)
		}
		if generation := d.Set.Generation(); generation != 0 {
			return errors.New("the connection still counts as sound")
		}
		return nil
	})
}

func TestRemoteKilledAndStartedAgain(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	remote := tokens.P11Kit(t)
	s := subject(t, remote.Token)
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	for _, attempts := range []int{1, 2, 5} { // the pause between attempts grows
		remote.Kill()
		before.mustBeAway(t, d, "a killed server")
		tried := d.Calls.Of("C_GetSlotList")
		d.Eventually(healing, "further attempts", func() error {
			if n := d.Calls.Of("C_GetSlotList") - tried; n < attempts {
				return fmt.Errorf("%d of %d", n, attempts)
			}
			return nil
		})
		remote.Start()
		before.mustHeal(t, d, fmt.Sprintf("the server was started again, %d attempts later", attempts))
	}
	d.Close()
}

// A server killed under load: nobody gets a wrong answer and nobody waits forever. p11-kit's client 0.24.1 now and then
// loses a wake-up when its connection dies under several calls: one of them then waits in pthread_cond_wait forever. The
// worker in which that happens is replaced.
func TestRemoteKilledUnderLoad(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	remote := tokens.P11Kit(t)
	s := subject(t, remote.Token)
	s.AddKey(t, time.Now().Add(-time.Minute))
	s.Token.CallTimeout, s.Token.ConnectTimeout = time.Second, 3*time.Second
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	defer callers.Wait()
	defer stop()
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				err := before.open(d)
				if err != nil && !errors.Is(err, envelope.ErrUnavailable) {
					t.Errorf("under load: %v", err)
					return
				}
				if took := time.Since(start); took > s.Token.CallTimeout+time.Second {
					t.Errorf("under load: an answer after %s: %v", took, err)
				}
			}
		})
	}
	for range 3 {
		remote.Kill()
		before.mustBeAway(t, d, "a killed server")
		remote.Start()
		took := d.Eventually(healing, "healing", func() error { return before.open(d) })
		t.Logf("healed %s after the server was started again", took.Round(time.Millisecond))
	}
}

// A stopped server is a network HSM behind a cable that was pulled: calls block, and go on when it is back.
func TestRemoteStoppedAndContinued(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	remote := tokens.P11Kit(t)
	s := subject(t, remote.Token)
	s.Token.CallTimeout = 500 * time.Millisecond
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	remote.Stop()
	t.Cleanup(remote.Continue) // or the module could not be finalised
	before.mustBeAway(t, d, "a stopped server")
	remote.Continue()
	before.mustHeal(t, d, "the server went on")
	if n := d.Calls.Of("C_Login"); n > 2 {
		t.Errorf("%d logins", n)
	}
	d.Close()
}

// A server that is stopped, killed and replaced while calls hang in it.
func TestRemoteKilledWhileCallsHang(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	remote := tokens.P11Kit(t)
	s := subject(t, remote.Token)
	s.Token.CallTimeout = 500 * time.Millisecond
	s.AddKey(t, time.Now().Add(-time.Minute))
	d := hsmtest.Start(t, s)
	before := seal(t, d)
	remote.Stop()
	before.mustBeAway(t, d, "a stopped server")
	remote.Kill()
	remote.Start()
	before.mustHeal(t, d, "the server was replaced")
	d.Close()
}
