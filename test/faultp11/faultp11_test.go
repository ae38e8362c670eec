package faultp11_test

import (
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

func TestPassesThrough(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	c.roundTrip(t, c.session)
	if err := c.CloseSession(c.session); err != nil {
		t.Fatal(err)
	}
	for fn, want := range map[string]int{
		"C_Initialize": 1, "C_OpenSession": 1, "C_CloseSession": 1, "C_Login": 1, "C_GenerateKey": 1,
		"C_EncryptInit": 1, "C_Encrypt": 2, "C_DecryptInit": 1, "C_Decrypt": 2, "C_Sign": 0,
	} {
		wantCount(t, "calls of "+fn, m.Calls(fn), want)
	}
	wantCount(t, "logins", m.Logins(), 1)
	wantCount(t, "open sessions", m.OpenSessions(), 0)
	wantCount(t, "most open sessions", m.MaxOpenSessions(), 1)
	wantCount(t, "calls in flight", m.InFlight(), 0)
	wantCount(t, "most calls in flight", m.MaxInFlight(), 1)
	m.ResetCounters()
	wantCount(t, "calls after a reset", m.TotalCalls(), 0)
}

func TestFailTimesAndAfter(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.Fail("C_EncryptInit", pkcs11.CKR_DEVICE_ERROR).After(1).Times(2)
	c.roundTrip(t, c.session)
	for range 2 {
		_, err := c.seal(c.session, []byte("x"))
		wantCode(t, err, pkcs11.CKR_DEVICE_ERROR)
	}
	c.roundTrip(t, c.session)
	wantCount(t, "injected", m.Injected("C_EncryptInit"), 2)
}

func TestFailUntilCleared(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	for range 3 {
		_, err := c.unseal(c.session, []byte("x"))
		wantCode(t, err, pkcs11.CKR_DEVICE_REMOVED)
	}
	m.ClearFunction("C_GetSessionInfo")
	if _, err := c.GetSessionInfo(c.session); err != nil {
		t.Errorf("a function cleared alone still fails: %v", err)
	}
	m.Clear()
	c.roundTrip(t, c.session)
}

// The call is done: the object is on the token although its maker was told that it failed.
func TestFailAfterIsDone(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.FailAfter("C_GenerateKey", pkcs11.CKR_FUNCTION_FAILED).Once()
	_, err := c.GenerateKey(c.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "ghost"), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32)})
	wantCode(t, err, pkcs11.CKR_FUNCTION_FAILED)
	if err := c.FindObjectsInit(c.session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "ghost")}); err != nil {
		t.Fatal(err)
	}
	found, _, err := c.FindObjects(c.session, 10)
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v; want the one key that was made", found, err)
	}
	if err := c.FindObjectsFinal(c.session); err != nil {
		t.Fatal(err)
	}
	m.FailAfter("C_OpenSession", pkcs11.CKR_FUNCTION_FAILED).Once()
	_, err = c.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION)
	wantCode(t, err, pkcs11.CKR_FUNCTION_FAILED)
	wantCount(t, "open sessions, the unknown one included", m.OpenSessions(), 2)
}

func TestOutputIsDamaged(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	good, err := c.seal(c.session, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	m.Truncate("C_Encrypt").Once()
	short, err := c.seal(c.session, []byte("plaintext"))
	if err != nil || len(short) != len(good)-1 {
		t.Errorf("truncated: %d bytes, %v; want %d", len(short), err, len(good)-1)
	}
	m.Corrupt("C_Encrypt").Once()
	bad, err := c.seal(c.session, []byte("plaintext"))
	if err != nil || len(bad) != len(good) || bad[0] != good[0]^1 {
		t.Errorf("corrupted: %x, %v; good is %x", bad, err, good)
	}
	_, err = c.unseal(c.session, bad)
	wantCode(t, err, pkcs11.CKR_GENERAL_ERROR) // SoftHSM's answer to a bad tag
}

func TestDelay(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.Delay("C_EncryptInit", 40*time.Millisecond)
	m.DelayAll(10 * time.Millisecond)
	start := time.Now()
	if _, err := c.seal(c.session, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 70*time.Millisecond { // 40 once and 10 for each of three calls
		t.Errorf("took %v, want at least 70 ms", took)
	}
}

func TestSessionLimit(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.MaxSessions(2)
	second := c.open(t)
	_, err := c.OpenSession(c.slot, pkcs11.CKF_SERIAL_SESSION)
	wantCode(t, err, pkcs11.CKR_SESSION_COUNT)
	if err := c.CloseSession(second); err != nil {
		t.Fatal(err)
	}
	c.open(t)
	wantCount(t, "most open sessions", m.MaxOpenSessions(), 2)
	if err := c.CloseAllSessions(c.slot); err != nil {
		t.Fatal(err)
	}
	wantCount(t, "open sessions", m.OpenSessions(), 0)
}

func TestDropSessionsAndLogin(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.DropLogin()
	info, err := c.GetSessionInfo(c.session)
	if err != nil || info.State != pkcs11.CKS_RW_PUBLIC_SESSION {
		t.Fatalf("after DropLogin: state %d, %v; want a public session", info.State, err)
	}
	if err := c.Login(c.session, pkcs11.CKU_USER, pin); err != nil {
		t.Fatal(err)
	}
	m.DropSessions()
	_, err = c.GetSessionInfo(c.session)
	wantCode(t, err, pkcs11.CKR_SESSION_HANDLE_INVALID)
	wantCount(t, "open sessions", m.OpenSessions(), 0)
	c.session = c.open(t) // the command was for once
	if _, err := c.GetSessionInfo(c.session); err != nil {
		t.Fatal(err)
	}
	wantCount(t, "logins", m.Logins(), 2)
}

func TestTokenFlagsAndSlots(t *testing.T) {
	t.Parallel()
	m, pin := newModule(t, faultp11.Options{})
	c := connect(t, m.Path(), pin)
	m.TokenFlags(pkcs11.CKF_USER_PIN_FINAL_TRY | pkcs11.CKF_USER_PIN_LOCKED)
	info, err := c.GetTokenInfo(c.slot)
	if err != nil || info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY == 0 || info.Flags&pkcs11.CKF_USER_PIN_LOCKED == 0 {
		t.Errorf("flags %#x, %v", info.Flags, err)
	}
	m.HideSlots(true)
	if slots, err := c.GetSlotList(true); err != nil || len(slots) != 0 {
		t.Errorf("hidden slots: %v, %v", slots, err)
	}
	m.Clear()
	info, err = c.GetTokenInfo(c.onlySlot(t))
	if err != nil || info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0 {
		t.Errorf("flags after Clear %#x, %v", info.Flags, err)
	}
}

func TestMisuseIsLoud(t *testing.T) {
	t.Parallel()
	m, _ := newModule(t, faultp11.Options{})
	for name, misuse := range map[string]func(){
		"misspelt":      func() { m.Fail("C_Encript", pkcs11.CKR_DEVICE_ERROR) },
		"no slot of it": func() { m.Hang("C_GetFunctionList") },
		"no calls":      func() { m.Fail("C_Encrypt", pkcs11.CKR_DEVICE_ERROR).Times(0) },
		"too many":      func() { m.Fail("C_Encrypt", pkcs11.CKR_DEVICE_ERROR).Times(1 << 14) },
		"negative":      func() { m.Fail("C_Encrypt", pkcs11.CKR_DEVICE_ERROR).After(-1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			misuse()
		}()
	}
}
