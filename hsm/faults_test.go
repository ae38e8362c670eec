package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// every CKR that FACTS of real tokens name, and one that no specification knows.
var faultCodes = []uint{
	pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
	pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
	pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
	pkcs11.CKR_USER_ALREADY_LOGGED_IN,
	pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
	pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SLOT_ID_INVALID,
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED,
	pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_HOST_MEMORY, 0x8000BEEF,
}

// every function that the daemon calls.
var faultFunctions = []string{
	"C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_CloseSession", "C_GetSessionInfo",
	"C_Login", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue",
	"C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt",
}

// TestFaults injects every code at every function, once and for a while, under the load of 16 clients, and
// wants the token healthy again within 10 s of the fault's end: same key_id, no wrong plaintext, no session
// leaked, never more than one login an attempt, never C_Finalize under a call.
//
// A short run has one code.
func TestFaults(t *testing.T) {
	codes := faultCodes
	if testing.Short() {
		codes = codes[:1]
	}
	for _, profile := range []envelope.Profile{envelope.AESGCM, envelope.HMACKDF} {
		functions := faultFunctions
		if profile == envelope.HMACKDF {
			functions = []string{"C_SignInit", "C_Sign"}
		}
		for _, function := range functions {
			t.Run(fmt.Sprintf("%s/%s", profile, function), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, func(c *hsm.Config, _ *hsm.TokenConfig) { c.Profile = profile }).start()
				for _, code := range codes {
					b.injectAndHeal(function, code, true)
					b.injectAndHeal(function, code, false)
				}
				b.stop()
				if n := b.module.OpenSessions(); n != 0 {
					t.Errorf("%d sessions were left open", n)
				}
				// One for login and refresh, and one while that one is being replaced. A token that lies about
				// C_CloseSession cannot be counted with.
				if n, most := b.module.MaxOpenSessions(), b.cfg.MaxSessions+2; n > most && function != "C_CloseSession" {
					t.Errorf("%d sessions were open at once, more than %d", n, most)
				}
			})
		}
	}
}

func (b *bench) injectAndHeal(function string, code uint, once bool) {
	b.t.Helper()
	name := fmt.Sprintf("%s %s once=%t", function, p11.RV(code), once)
	id := b.current()
	logins := b.module.Calls("C_Login")
	load := b.startLoad(id, 16)
	load.waitFor(32)
	fault := b.module.Fail(function, code)
	if once {
		fault.Once()
	} else {
		fault.UntilCleared()
	}
	b.provoke(function)
	b.module.WaitCalls(b.within(10*time.Second), function, b.module.Calls(function)+1)
	load.waitFor(32)
	b.module.Clear()
	if function == "C_Login" && isPINCode(code) {
		b.refusedOnce(name, logins)
	}
	start := time.Now()
	b.eventually(10*time.Second, func() error { return b.ring.Exercise(b.t.Context()) })
	healed := time.Since(start)
	load.waitForGood(32)
	load.end()
	if err := b.ring.Refresh(b.t.Context()); err != nil {
		b.t.Errorf("%s: refresh: %v", name, err)
	}
	if got := b.current(); got != id {
		b.t.Errorf("%s: key_id became %s, was %s", name, got, id)
	}
	if healed > 5*time.Second {
		b.t.Logf("%s: healed after %s", name, healed)
	}
	if err := load.wrong.Load(); err != nil {
		b.t.Errorf("%s: %v", name, *err)
	}
}

// provoke makes the daemon call a function that it calls only when it connects.
func (b *bench) provoke(function string) {
	switch function {
	case "C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_GetSessionInfo", "C_Login", "C_FindObjectsInit",
		"C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue":
		b.module.Fail("C_EncryptInit", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).Times(2)
		b.module.Fail("C_SignInit", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).Times(2)
	case "C_OpenSession", "C_CloseSession":
		b.module.Fail("C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID).Times(2)
	}
}

func isPINCode(code uint) bool {
	return code == pkcs11.CKR_PIN_INCORRECT || code == pkcs11.CKR_PIN_LOCKED || code == pkcs11.CKR_PIN_EXPIRED
}

// refusedOnce wants that exactly one login was tried, and allows another.
func (b *bench) refusedOnce(name string, before int) {
	b.t.Helper()
	b.eventually(10*time.Second, func() error {
		if err := b.ring.Exercise(b.t.Context()); !envelope.IsPIN(err) {
			return fmt.Errorf("%s: wanted an error of the PIN, got %v", name, err)
		}
		return nil
	})
	if n := b.module.Calls("C_Login") - before; n != 1 {
		b.t.Errorf("%s: %d logins with a refused PIN", name, n)
	}
	b.allowPIN()
}

// allowPIN does what hsm-kms doctor --try-pin does for an operator.
func (b *bench) allowPIN() {
	b.t.Helper()
	if err := hsm.AllowPIN(b.t.Context(), b.common, b.cfg); err != nil {
		b.t.Fatal(err)
	}
}

// load is clients that seal and open, and look at every answer.
type load struct {
	t           *testing.T
	cancel      context.CancelFunc
	wg          sync.WaitGroup
	good, total atomic.Int64
	wrong       atomic.Pointer[error]
}

func (b *bench) startLoad(id envelope.KeyID, clients int) *load {
	ctx, cancel := context.WithCancel(b.t.Context())
	l := &load{t: b.t, cancel: cancel}
	dek := bytes.Repeat([]byte{0xA5}, 32)
	wrapped, err := b.ring.Seal(ctx, id, dek)
	if err != nil {
		b.t.Fatalf("sealing before any fault: %v", err)
	}
	for range clients {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				l.one(ctx, b.ring, id, dek, wrapped)
			}
		})
	}
	return l
}

// one seals and opens. Errors are of no account, wrong answers are.
func (l *load) one(ctx context.Context, ring *envelope.Ring, id envelope.KeyID, dek, wrapped []byte) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	opened, err := ring.Open(ctx, id.String(), wrapped)
	l.judge(opened, dek, err)
	fresh, err := ring.Seal(ctx, id, dek)
	if err == nil {
		opened, err = ring.Open(ctx, id.String(), fresh)
	}
	l.judge(opened, dek, err)
	pause := 2 * time.Millisecond // between two requests, so that sixteen clients do not take the two cores from the token
	if testing.Short() {
		pause = 20 * time.Millisecond
	}
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

func (l *load) judge(opened, dek []byte, err error) {
	l.total.Add(1)
	switch {
	case err == nil && bytes.Equal(opened, dek):
		l.good.Add(1)
	case err == nil:
		wrong := fmt.Errorf("wrong plaintext %x", opened)
		l.wrong.CompareAndSwap(nil, &wrong)
	case errors.Is(err, envelope.ErrMalformed), errors.Is(err, envelope.ErrUnknownKey):
		wrong := fmt.Errorf("an authentic envelope under a key that is there: %w", err)
		l.wrong.CompareAndSwap(nil, &wrong)
	}
}

// waitFor waits for n more operations, good or bad.
func (l *load) waitFor(n int64) { l.wait(&l.total, n) }

// waitForGood waits for n more operations that succeeded.
func (l *load) waitForGood(n int64) { l.wait(&l.good, n) }

func (l *load) wait(counter *atomic.Int64, n int64) {
	l.t.Helper()
	until := counter.Load() + n
	deadline := time.Now().Add(20 * time.Second)
	for counter.Load() < until {
		if time.Now().After(deadline) {
			l.t.Fatalf("the clients made %d of %d operations in 20 s", n-(until-counter.Load()), n)
		}
		time.Sleep(time.Millisecond)
	}
}

func (l *load) end() {
	l.cancel()
	l.wg.Wait()
}
