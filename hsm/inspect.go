package hsm

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
)

// Inspection is what a token tells without a login. It is made with C_Initialize, C_GetSlotList, C_GetTokenInfo,
// C_GetMechanismInfo and C_Finalize alone: no session, no login, nothing that could be counted against the PIN.
type Inspection struct {
	// Err is why the token was not found: ErrConfiguration (the module does not load, two tokens match),
	// ErrTokenAbsent, or what a call said; the rest is empty then. Hangs tells that a call did not return: the module
	// must not be used again in this process.
	Err   error
	Hangs bool

	Slot                               uint
	Label, Serial, Manufacturer, Model string
	PIN                                PINState
	// Latch is what the PIN latch says of a login with the present PIN file: nil, or latch.ErrStands or
	// latch.ErrState. It is nil too when the PIN file cannot be looked at.
	Latch error
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
// and tries no PIN. Errors that concern one token are in its Inspection. The modules must not be in use in this
// process: Inspect initialises them, and finalises them before it returns, but for one in which a call hangs.
func Inspect(ctx context.Context, common Config, tokens []TokenConfig) []Inspection {
	if common.Log == nil {
		common.Log = slog.Default()
	}
	found := make([]Inspection, len(tokens))
	loaded := modules{byFile: map[fileID]*module{}}
	for i, cfg := range tokens {
		mod, err := loaded.load(cfg.Module, cfg.Reserved)
		if err != nil {
			found[i].Err = err
			continue
		}
		found[i] = newToken(cfg, &common, mod).inspect(ctx)
	}
	for _, mod := range loaded.byFile {
		mod.shutdown()
	}
	return found
}

// inspect makes the calls of Inspect, each within callTimeout.
func (t *Token) inspect(ctx context.Context) Inspection {
	// Handed over only when all is done: an inspection that was abandoned may still be writing to its own.
	result := make(chan Inspection, 1)
	err := t.onControl(ctx, "inspecting", func() {}, func(api p11.API, _ *call) error {
		if err := t.mod.initialize(api); err != nil {
			return err
		}
		slot, info, err := t.findSlot(api)
		if err != nil {
			return err
		}
		seen := Inspection{
			Slot: slot, Label: trim(info.Label), Serial: trim(info.SerialNumber),
			Manufacturer: trim(info.ManufacturerID), Model: trim(info.Model), PIN: pinState(info.Flags),
		}
		seen.Lacks, seen.CannotMake = offers(api, slot, t.common.Profile)
		if file, err := pinfile.Stat(t.cfg.PINFile); err == nil {
			seen.Latch = t.latch.Standing(identity(info), file, !seen.PIN.FailedOnce)
		}
		result <- seen
		return nil
	})
	if err != nil {
		return Inspection{Err: fmt.Errorf("token %s: %w", t.cfg.Name, asUnavailable(err)), Hangs: isAway(err)}
	}
	return <-result
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
	return lacks, !has(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKF_GENERATE)
}

// ClearLatch forgets what an earlier login with the token's present PIN file came to, so that the next one is tried
// once more. For a person who knows that the PIN is right. It fails when the token is not found, and refuses, with
// envelope.ErrPINRefused, when the token itself says that its PIN is locked or that a wrong one would lock it.
// The module must not be in use in this process.
func ClearLatch(ctx context.Context, common Config, cfg TokenConfig) error {
	set, err := Open(common, []TokenConfig{cfg})
	if err != nil {
		return err
	}
	t := set.tokens[0]
	defer t.mod.shutdown()
	err = t.onControl(ctx, "looking at the PIN counters", func() {}, func(api p11.API, _ *call) error {
		if err := t.mod.initialize(api); err != nil {
			return err
		}
		_, info, err := t.findSlot(api)
		if err != nil {
			return err
		}
		if err := mayLogin(info); err != nil {
			return err
		}
		file, err := pinfile.Stat(cfg.PINFile)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrConfiguration, err)
		}
		return t.latch.Clear(ctx, identity(info), file)
	})
	if err != nil {
		return fmt.Errorf("clearing the PIN latch of token %s: %w", cfg.Name, asUnavailable(err))
	}
	return nil
}
