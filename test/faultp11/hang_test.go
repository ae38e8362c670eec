package faultp11_test

import (
	"context"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// soon bounds every wait: far more than is ever needed, so that only a real hang meets it.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// sealAsync seals in another goroutine and gives its error when it is done.
func (c *client) sealAsync(s pkcs11.SessionHandle) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := c.seal(s, []byte("x"))
		done <- err
	}()
	return done
}

func TestHangAndLiveChange(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	other := c.open(t)
	release := m.Hang("C_EncryptInit")
	one, two := c.sealAsync(c.session), c.sealAsync(other)
	if err := m.WaitHung(soon(t), "C_EncryptInit", 2); err != nil {
		t.Fatal(err)
	}
	wantCount(t, "calls in flight", m.InFlight(), 2)
	wantCount(t, "calls of it in flight", m.InFlightOf("C_EncryptInit"), 2)
	if _, err := c.GetSessionInfo(c.session); err != nil {
		t.Errorf("a function that does not hang: %v", err)
	}
	m.Fail("C_EncryptInit", pkcs11.CKR_DEVICE_ERROR).Once() // decided while they hang
	release()
	release() // harmless
	failed := 0
	for _, done := range []<-chan error{one, two} {
		if err := <-done; err != nil {
			wantCode(t, err, pkcs11.CKR_DEVICE_ERROR)
			failed++
		}
	}
	wantCount(t, "hung calls that failed", failed, 1)
	wantCount(t, "calls in flight at the end", m.InFlight(), 0)
	wantCount(t, "most calls of it in flight", m.MaxInFlightOf("C_EncryptInit"), 2)
}

func TestReleaseEndsOnlyItsOwnHang(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	releaseFirst := m.HangAll()
	first := c.sealAsync(c.session)
	if err := m.WaitHung(soon(t), "C_EncryptInit", 1); err != nil {
		t.Fatal(err)
	}
	releaseSecond := m.HangAfter("C_Encrypt") // another function's hang ends with the first
	releaseFirst()
	if err := m.WaitHung(soon(t), "C_Encrypt", 1); err != nil {
		t.Fatal(err)
	}
	releaseFirst()
	wantCount(t, "hung after an old release", m.Hung("C_Encrypt"), 1)
	releaseSecond()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// C_Finalize under a call is counted, and waits instead of crashing the process.
func TestFinalizeWhileBusy(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{AllowBusyFinalize: true})
	c := connect(t, m.Path(), pin)
	release := m.Hang("C_EncryptInit")
	done := c.sealAsync(c.session)
	if err := m.WaitHung(soon(t), "C_EncryptInit", 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Finalize(); err != nil {
		t.Fatal(err)
	}
	wantCount(t, "finalized while busy", m.FinalizedWhileBusy(), 1)
	wantCount(t, "open sessions", m.OpenSessions(), 0)
	release()
	wantCode(t, <-done, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
	if err := c.Initialize(); err != nil {
		t.Fatal(err)
	}
	if err := c.Finalize(); err != nil {
		t.Fatal(err)
	}
	wantCount(t, "finalized while busy, after an idle one", m.FinalizedWhileBusy(), 1)
}

// Faults change while many calls run: no call sees half of a fault, and every count adds up.
func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	const workers, each = 4, 200
	m.Fail("C_EncryptInit", pkcs11.CKR_DEVICE_ERROR).Times(100)
	failures := make(chan int)
	for range workers {
		go func(s pkcs11.SessionHandle) {
			failed := 0
			for range each {
				if _, err := c.seal(s, []byte("x")); err != nil {
					failed++
				}
			}
			failures <- failed
		}(c.open(t))
	}
	if err := m.WaitCalls(soon(t), "C_EncryptInit", 2); err != nil {
		t.Fatal(err)
	}
	total := 0
	for range workers {
		total += <-failures
	}
	wantCount(t, "failures", total, 100)
	wantCount(t, "injected", m.Injected("C_EncryptInit"), 100)
	wantCount(t, "calls", m.Calls("C_EncryptInit"), workers*each)
	wantCount(t, "calls of C_Encrypt", m.Calls("C_Encrypt"), 2*(workers*each-100))
	if err := m.WaitIdle(soon(t)); err != nil {
		t.Error(err)
	}
}

func TestWaitSaysWhatItSaw(t *testing.T) {
	t.Parallel()
	m, _ := newModule(t, faultp11.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := m.WaitCalls(ctx, "C_Login", 3)
	if err == nil || err.Error() != "waiting for 3 calls of C_Login, seen 0: context canceled" {
		t.Errorf("got %v", err)
	}
}

// One call out of many hangs, before or after the real one, and the others go on.
func TestHangOfOneCall(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	other := c.open(t)
	for name, plan := range map[string]*faultp11.Plan{"before": m.HangCall("C_EncryptInit"), "after": m.HangCallAfter("C_EncryptInit")} {
		plan.After(1).Once()
		if _, err := c.seal(c.session, []byte("x")); err != nil {
			t.Fatalf("%s: the call before: %v", name, err)
		}
		done := c.sealAsync(c.session)
		if err := m.WaitHung(soon(t), "C_EncryptInit", 1); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := c.seal(other, []byte("x")); err != nil {
			t.Errorf("%s: the call after: %v", name, err)
		}
		m.ClearFunction("C_EncryptInit")
		if err := <-done; err != nil {
			t.Errorf("%s: when it goes on: %v", name, err)
		}
	}
}

func TestDelayOfOneCall(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	const late = 50 * time.Millisecond
	m.DelayCall("C_EncryptInit", late).Once()
	start := time.Now()
	if _, err := c.seal(c.session, []byte("x")); err != nil || time.Since(start) < late {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	wantCount(t, "injected", m.Injected("C_EncryptInit"), 1)
	if _, err := c.seal(c.session, []byte("x")); err != nil {
		t.Error(err)
	}
	wantCount(t, "injected", m.Injected("C_EncryptInit"), 1)
}
