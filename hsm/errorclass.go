package hsm

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// errorClass is what a CKR says about what is broken, from the least to the most. PKCS#11 v2.40, section 5.1, tells
// what each value means; what tokens do with them is what was seen.
type errorClass int

const (
	classNone errorClass = iota
	// classSession: this session is of no use. Another one may be opened.
	classSession
	// classData: the token may mean the ciphertext or may mean itself. SoftHSM says CKR_GENERAL_ERROR of every
	// flaw of a ciphertext, CloudHSM says CKR_FUNCTION_FAILED when it throttles. An independent check decides.
	classData
	// classLogin: login or handles are lost; SoftHSM says CKR_OBJECT_HANDLE_INVALID after a lost login.
	classLogin
	// classPIN: the token refused the PIN. A person must act.
	classPIN
	// classToken: the token is gone, or is not in this slot any more.
	classToken
	// classModule: the module, or the worker that it is in, is of no use any more.
	classModule
)

// classOf classifies an error of package p11. An error without a CKR, and a CKR that nobody foresaw, is
// classData: it is checked before it is believed.
func classOf(err error) errorClass {
	if err == nil {
		return classNone
	}
	if errors.Is(err, errStale) {
		return classSession
	}
	if errors.Is(err, p11.ErrEnded) {
		return classModule
	}
	rv, ok := p11.RVOf(err)
	if !ok {
		return classData
	}
	switch rv {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_SESSION_COUNT:
		return classSession
	case pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID:
		return classLogin
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED,
		pkcs11.CKR_PIN_LOCKED:
		// Not CKR_USER_PIN_NOT_INITIALIZED: a token without a PIN counts no wrong ones and cannot lock, and SoftHSM
		// says so to a process that logs in while another one does.
		return classPIN
	case pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_SLOT_ID_INVALID:
		return classToken
	case pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return classModule
	}
	return classData
}

// closeSession closes a session that may be dead already. It is done even when a call just said that the
// session is gone: closing a number that another session got meanwhile costs that one a retry, and leaving
// open what is not gone would use the token up.
func closeSession(api p11.API, s p11.Session) error {
	if err := api.CloseSession(s); err != nil && !p11.SessionIsGone(err) && !errors.Is(err, p11.ErrEnded) {
		return fmt.Errorf("closing session: %w", err)
	}
	return nil
}

// hasRV reports whether err carries the return value rv.
func hasRV(err error, rv p11.RV) bool {
	got, ok := p11.RVOf(err)
	return ok && got == rv
}

var (
	// ErrConfiguration: what a restart cannot cure and a person must: the module file, the PIN file, two
	// tokens that match. At start it ends the program; later it is an outage like any other.
	ErrConfiguration = errors.New("configuration")
	// ErrTokenAbsent: the module shows no token that matches the configuration.
	ErrTokenAbsent = errors.New("no token matches")
	errAbandoned   = p11.ErrOverdue
)
