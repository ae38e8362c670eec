package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// Inspection is what a token tells without a login. It is made in a worker of its own with C_Initialize, C_GetSlotList,
// C_GetTokenInfo, C_GetMechanismInfo and C_Finalize alone: no session, no login, nothing that could be counted against the
// PIN.
type Inspection struct {
	// Err is why the token was not found: ErrConfiguration (the module does not load, two tokens match),
	// ErrTokenAbsent, or what a call said; the rest is empty then. Hangs reports that a call did not return.
	Err   error
	Hangs bool

	Slot                               uint
	Label, Serial, Manufacturer, Model string
	Firmware                           string // as "6.2"
	PIN                                PINState
	// PINFile is what is wrong with the PIN file, or with the PIN pad; nil: nothing. The worker has read the file.
	PINFile error
	// Guard is what the attempt guard says of a login with the present PIN: nil, or an error of package guard.
	Guard error
	// Lacks are the mechanisms of the profile that the token does not offer, as "CKM_AES_GCM"; CannotMake tells that
	// it does not offer the making of a key for it. What a token offers and what it does are two things: the
	// self-test after the login proves it.
	Lacks      []string
	CannotMake bool
}

// PINState is what CK_TOKEN_INFO says of the user PIN (PKCS#11 v2.40, section 4.5).
type PINState struct {
	Uninitialized bool // nobody has set it
	FailedOnce    bool // a wrong one was given since the last login that succeeded
	FinalTry      bool // the next wrong one locks it
	Locked        bool
}

// Inspect looks at every token of the configuration, one after the other, by their order. It changes nothing on them
// and tries no PIN. Errors that concern one token are in its Inspection.
func Inspect(ctx context.Context, common Config, tokens []TokenConfig) []Inspection {
	found := make([]Inspection, len(tokens))
	for i, t := range Open(common, tokens).tokens {
		found[i] = t.inspect(ctx)
	}
	return found
}

// inspect makes the calls of Inspect, each within callTimeout, but for C_Initialize.
func (t *Token) inspect(ctx context.Context) (seen Inspection) {
	err := t.withoutLogin(ctx, func(w workerProcess, api p11.API, slot uint, info pkcs11.TokenInfo) error {
		seen = Inspection{
			Slot: slot, Label: trim(info.Label), Serial: trim(info.SerialNumber),
			Manufacturer: trim(info.ManufacturerID), Model: trim(info.Model), PIN: pinState(info.Flags),
			Firmware: fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor),
		}
		seen.Lacks, seen.CannotMake = offers(api, slot, t.common.Profile)
		if t.cfg.Login != LoginNone {
			seen.PINFile, seen.Guard = t.inspectPIN(ctx, w, info)
		}
		return nil
	})
	if err != nil {
		return Inspection{Err: fmt.Errorf("token %s: %w", t.cfg.Name, asUnavailable(err)), Hangs: ranOutOfTime(err)}
	}
	return seen
}

// inspectPIN looks at the PIN file, and at what stands against the PIN in it.
func (t *Token) inspectPIN(ctx context.Context, w workerProcess, info pkcs11.TokenInfo) (file, standing error) {
	source, err := t.pinSource(info)
	if err != nil {
		return err, nil
	}
	pin := t.pin(ctx, w, source)
	if _, err := pin.tag([]byte(t.cfg.Name)); err != nil { // which tag it is does not matter
		return err, nil
	}
	return nil, t.guard.Standing(t.guarded(info), pin.tag)
}

// withoutLogin finds the token in a worker of its own, and has f look at it.
func (t *Token) withoutLogin(ctx context.Context, f func(w workerProcess, api p11.API, slot uint, info pkcs11.TokenInfo) error) error {
	err := t.inOneWorker(ctx, f)
	if isUnsettled(err) {
		err = t.lookAgain(ctx, func() error { return t.inOneWorker(ctx, f) })
	}
	return err
}

func (t *Token) inOneWorker(ctx context.Context, f func(w workerProcess, api p11.API, slot uint, info pkcs11.TokenInfo) error) error {
	w, err := t.startWorker(ctx)
	if err != nil {
		return err
	}
	defer w.End()
	if err := t.initialize(w.For(ctx, t.cfg.ConnectTimeout)); err != nil {
		return err
	}
	api := w.For(ctx, t.cfg.CallTimeout)
	slot, info, err := t.findSlot(api)
	if err != nil {
		return err
	}
	return f(w, api, slot, info)
}

func pinState(flags uint) PINState {
	return PINState{
		Uninitialized: flags&pkcs11.CKF_LOGIN_REQUIRED != 0 && flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0,
		FailedOnce:    flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0,
		FinalTry:      flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0,
		Locked:        flags&pkcs11.CKF_USER_PIN_LOCKED != 0,
	}
}

// offers asks for the mechanisms of the profile. AES whose maximum key size is too small for 256 bits counts as lacking;
// some tokens give it in bytes and some in bits, and some leave it 0. Of an HMAC's sizes tokens say anything.
func offers(api p11.API, slot uint, profile envelope.Profile) (lacks []string, cannotMake bool) {
	has := func(mechanism, flags uint) bool {
		info, err := api.Mechanism(slot, mechanism)
		sizes := mechanism == pkcs11.CKM_SHA256_HMAC || info.MaxKeySize == 0 || info.MaxKeySize >= 32
		return err == nil && info.Flags&flags == flags && sizes
	}
	if profile == envelope.HMACKDF {
		if !has(pkcs11.CKM_SHA256_HMAC, pkcs11.CKF_SIGN) {
			lacks = append(lacks, "CKM_SHA256_HMAC")
		}
		return lacks, !has(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKF_GENERATE)
	}
	if !has(pkcs11.CKM_AES_GCM, pkcs11.CKF_ENCRYPT|pkcs11.CKF_DECRYPT) {
		lacks = append(lacks, "CKM_AES_GCM")
	}
	if profile == envelope.AESGCMHSMIV && !has(pkcs11.CKM_AES_ECB, pkcs11.CKF_ENCRYPT) {
		lacks = append(lacks, "CKM_AES_ECB")
	}
	return lacks, !has(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKF_GENERATE)
}

// AllowPIN forgets what earlier logins with the PIN that the file holds now came to, so that it is tried once more. For a
// person who knows that the PIN is right. It fails when the token is not found, and refuses, with
// envelope.ErrPINLocked or envelope.ErrPINRefused, when the token itself says that its PIN is locked or that a wrong one would lock it.
func AllowPIN(ctx context.Context, common Config, cfg TokenConfig) error {
	t := Open(common, []TokenConfig{cfg}).tokens[0]
	err := t.withoutLogin(ctx, func(w workerProcess, _ p11.API, _ uint, info pkcs11.TokenInfo) error {
		if err := mayLogin(info); err != nil {
			return err
		}
		file, err := t.pinSource(info)
		if err != nil {
			return err
		}
		return t.guard.Clear(ctx, t.guarded(info), t.pin(ctx, w, file).tag)
	})
	if err != nil {
		return fmt.Errorf("allowing another login to token %s: %w", cfg.Name, asUnavailable(err))
	}
	return nil
}
