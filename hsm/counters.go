package hsm

import (
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// What the token's own login counters say (CK_TOKEN_INFO flags), before a PIN is tried and after.

// counted reports whether the token counts a login that failed for an unclear cause against the PIN: some say
// CKR_GENERAL_ERROR, or a value of their own, to a wrong one.
func counted(api p11.API, slot uint, cleanBefore bool) bool {
	info, err := api.TokenInfo(slot)
	low := info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0
	last := info.Flags&(pkcs11.CKF_USER_PIN_FINAL_TRY|pkcs11.CKF_USER_PIN_LOCKED) != 0
	return err == nil && (cleanBefore && low || last)
}

// mayLogin looks at the token's own login counters first (PKCS#11 v2.40, section 4.5, CK_TOKEN_INFO flags).
func mayLogin(info pkcs11.TokenInfo) error {
	switch {
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return hint.Wrap(fmt.Errorf("%w: no login is tried", envelope.ErrPINLocked), envelope.PINLockedHint)
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return hint.Wrap(fmt.Errorf("%w: the token says that the next wrong PIN locks it, so none is tried", envelope.ErrPINRefused),
			"log in by hand with the vendor's tool and the right PIN: that resets the counter")
	}
	return nil
}

// warnOfCounter says that the token counts a failed login. It is for where a PIN is tried: while an earlier attempt stands against it each new
// look at the token would say it again.
func (t *Token) warnOfCounter(clean bool) {
	if !clean {
		t.log.Warn("a wrong PIN has been tried on this token since the last login that succeeded",
			"hint", "find out who tried it: a few more lock the token")
	}
}
