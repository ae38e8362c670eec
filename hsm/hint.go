package hsm

import (
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// HintFor says what to do about an error that keeps a token from being used: what the place that made it says, or else
// what its kind asks for. There is always something.
func HintFor(err error) string {
	if advice := hint.Of(err); advice != "" {
		return advice
	}
	for _, known := range []struct {
		err    error
		advice string
	}{
		{envelope.ErrPINLocked, envelope.PINLockedHint},
		{envelope.ErrPINExpired, envelope.PINExpiredHint},
		{envelope.ErrPINRefused, envelope.PINRefusedHint},
		{envelope.ErrSelfTest, "run hsm-kms doctor: the token does not do what the profile needs, or does not open what it sealed (docs/hsm-support.md)"},
		{ErrConfiguration, "correct what it names, or the configuration, which the plugin reads at its start only; do not restart a plugin that is on its outage hold"},
		{ErrTokenAbsent, "check that the HSM is reachable and initialised, and that tokens[] names it by label, serial or slot"},
		{errVanished, "check that the token's store or partition is there; if its keys were destroyed, restore them from the token's backup"},
		{errAbandoned, "find out why the HSM, the vendor's client service or the network between does not answer"},
	} {
		if errors.Is(err, known.err) {
			return known.advice
		}
	}
	return hintForCall(err)
}

// hintForCall goes by what the module said, and to which call.
func hintForCall(err error) string {
	failed, ok := errors.AsType[*p11.Error](err)
	if !ok {
		return "run hsm-kms doctor on this node: it finds out whether the HSM, the network, the module or the PIN is the cause"
	}
	switch failed.RV {
	case pkcs11.CKR_CANT_LOCK:
		return "the library cannot be used by several threads, which hsm-kms requires (CKF_OS_LOCKING_OK): ask its vendor for one that can"
	case pkcs11.CKR_SESSION_COUNT:
		return "the token has no session left: see which other programs hold them, or lower maxSessions"
	case pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return "set the token's user PIN with the vendor's tool"
	case pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_USER_TOO_MANY_TYPES:
		return "another user is logged in to the token through this module: end that program, or its login"
	case pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_DEVICE_MEMORY:
		return "memory is short: free some on this node, or in the HSM"
	}
	if failed.Function == "C_Initialize" {
		return "the module does not start: see its own configuration (file and environment), its store or client service, and its own log"
	}
	return "check that the HSM, the vendor's client service and the network between are up, and what their own logs say; hsm-kms doctor shows which step fails"
}
