package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/miekg/pkcs11"
)

const (
	// every is how often a fault is set; what it does may last longer, so that faults meet.
	every       = 300 * time.Millisecond
	mostInStorm = 16
)

// functions are those that the daemon calls: the list of hsm's TestFaults.
func functions() []string {
	return append([]string{
		"C_Initialize", "C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_CloseSession", "C_GetSessionInfo",
		"C_Login", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue",
	}, cryptoFunctions()...)
}

// cryptoFunctions are called for every request, so that a hang of one is met at once.
func cryptoFunctions() []string {
	return []string{"C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"}
}

// answers are what a function may say: the list of hsm's TestFaults, and one code that no specification knows.
func answers() []uint {
	return append([]uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_SESSION_COUNT,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED,
		pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_USER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_PIN_NOT_INITIALIZED,
		pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED,
		pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_HOST_MEMORY, 0x8000BEEF,
	}, pinAnswers()...)
}

// pinAnswers stop every login until a person has written the PIN file again, so C_Login must not say them here.
func pinAnswers() []uint {
	return []uint{pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LOCKED, pkcs11.CKR_PIN_EXPIRED}
}

// inject sets faults for d, or until ctx ends, the program does, or it does not heal. They come in storms of a few, after
// each of which all must be well again: faults that never end would be one long outage, with nothing to recover from.
// What it does is in the folder's file faults.log.
func (w *rig) inject(ctx context.Context, random *rand.Rand, d time.Duration, r *report) error {
	record, err := os.Create(filepath.Join(w.dir, "faults.log"))
	if err != nil {
		return fmt.Errorf("recording the faults: %w", err)
	}
	defer record.Close()
	tell := func(what string) { fmt.Fprintln(record, time.Now().Format("15:04:05.000"), what) }
	for start := time.Now(); time.Since(start) < d && ctx.Err() == nil && w.plugin.Process().Running() && r.Ill == nil; {
		for range 1 + random.IntN(mostInStorm) {
			tell(w.fault(random))
			r.Faults++
			pause(ctx, every)
		}
		took, err := w.heal(ctx)
		r.Healed, r.Ill = max(r.Healed, took), err
		tell(fmt.Sprintf("all cleared; well after %s, error: %v", took, err))
		pause(ctx, every)
	}
	return nil
}

// longestHang is how long a call may hang.
const longestHang = 4 * time.Second

// holdsAfterWorst is what the program holds after the storm that takes most: every call hangs, for as long as one can. The Go
// runtime keeps each thread that it ever needed, so how many there are is the work of the worst storm so far, and says
// nothing of growth unless the worst has come before the first look too.
func (w *rig) holdsAfterWorst(ctx context.Context) (resources, error) {
	var release []func()
	for _, function := range functions() {
		release = append(release, w.module.Hang(function))
	}
	pause(ctx, longestHang)
	for _, end := range release {
		end()
	}
	if _, err := w.heal(ctx); err != nil {
		return resources{}, fmt.Errorf("after a storm in which every call hung: %w", err)
	}
	pause(ctx, settling) // calls that were given up have returned by then
	return w.holds(ctx)
}

// fault sets one fault and says which. Those that last are ended later, by themselves or by heal.
func (w *rig) fault(random *rand.Rand) string {
	m := w.module
	switch n := random.IntN(20); {
	case n < 11:
		return w.failure(random)
	case n < 13:
		function, d := pick(random, append(functions(), cryptoFunctions()...)), between(random, 100*time.Millisecond, longestHang)
		time.AfterFunc(d, m.Hang(function))
		return fmt.Sprintf("hang %s %s", function, d)
	case n < 15:
		m.DropSessions()
		return "drop sessions"
	case n < 17:
		m.DropLogin()
		return "drop login"
	case n == 17:
		sessions, d := 1+random.IntN(maxSessions), between(random, 100*time.Millisecond, 2*time.Second)
		m.MaxSessions(sessions)
		time.AfterFunc(d, func() { m.MaxSessions(0) })
		return fmt.Sprintf("at most %d sessions for %s", sessions, d)
	case n == 18:
		d := between(random, 100*time.Millisecond, 2*time.Second)
		m.HideSlots(true)
		time.AfterFunc(d, func() { m.HideSlots(false) })
		return fmt.Sprintf("no slots for %s", d)
	default:
		function, delay := pick(random, cryptoFunctions()), between(random, time.Millisecond, 100*time.Millisecond)
		d := between(random, 100*time.Millisecond, 2*time.Second)
		m.Delay(function, delay)
		time.AfterFunc(d, func() { m.Delay(function, 0) })
		return fmt.Sprintf("delay %s by %s for %s", function, delay, d)
	}
}

// failure has a function fail a few times, and sees to it that it is called.
func (w *rig) failure(random *rand.Rand) string {
	m := w.module
	function, code, times := pick(random, functions()), pick(random, answers()), 1+random.IntN(8)
	if function == "C_Login" && slices.Contains(pinAnswers(), code) {
		code = pkcs11.CKR_DEVICE_ERROR
	}
	m.Fail(function, code).Times(times)
	switch {
	case slices.Contains(cryptoFunctions(), function):
	case function == "C_OpenSession" || function == "C_CloseSession":
		m.Fail("C_EncryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID).Times(2)
	default: // called when the daemon connects
		m.Fail("C_EncryptInit", pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).Times(2)
	}
	return fmt.Sprintf("%s says %s %d times", function, pkcs11.Error(code), times)
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// between gives a time in whole milliseconds.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return (least + time.Duration(random.Int64N(int64(most-least)))).Round(time.Millisecond)
}
