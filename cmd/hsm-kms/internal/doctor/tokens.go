package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/guard"
)

// inspect asks the tokens that have indices in fit what they tell without a login, and gives the indices of those that
// a login may be tried on.
func (d *doctor) inspect(ctx context.Context, fit []int) []int {
	asked := make([]hsm.TokenConfig, len(fit))
	for i, at := range fit {
		asked[i] = d.tokens[at]
	}
	var usable []int
	for i, seen := range hsm.Inspect(ctx, d.common, asked) {
		if d.judge(ctx, asked[i], seen) {
			usable = append(usable, fit[i])
		}
	}
	return usable
}

// judge says what is wrong with a token as far as it tells without a login.
func (d *doctor) judge(ctx context.Context, t hsm.TokenConfig, seen hsm.Inspection) bool {
	switch {
	case seen.Hangs:
		d.fail("token", t.Name, seen.Err.Error(), "the HSM, or the network to it, does not answer: see the vendor's client log; a restart of the client often helps")
		return false
	case seen.Err != nil:
		d.failure("token", t.Name, seen.Err, "check that the HSM is reachable from this machine: the vendor's own tool shows its tokens")
		return false
	}
	d.pass("token", t.Name, fmt.Sprintf("slot %d, label %q, serial %q, %s %s", seen.Slot, seen.Label, seen.Serial, seen.Manufacturer, seen.Model))
	offered := d.mechanisms(t, seen)
	return (t.Login == hsm.LoginNone || d.counters(t, seen.PIN) && d.pin(ctx, t, seen)) && offered
}

func (d *doctor) mechanisms(t hsm.TokenConfig, seen hsm.Inspection) bool {
	const check = "mechanisms"
	switch {
	case len(seen.Lacks) > 0:
		advice := "use another token, or a ring of another profile: docs/hsm-support.md"
		if d.cfg.Profile != config.ProfileHMACKDF {
			advice = "set profile: hmac-kdf, which needs CKM_SHA256_HMAC alone, before the ring has its first key; or use another token"
		}
		d.fail(check, t.Name, fmt.Sprintf("the token does not offer %s, which profile %s needs", strings.Join(seen.Lacks, ", "), d.cfg.Profile), advice)
		return false
	case seen.CannotMake:
		d.warn(check, t.Name, "the token offers what the profile needs, and cannot make keys for it itself",
			"make keys with the vendor's tool: hsm-kms keys rotate --print-id gives label and CKA_ID")
		return true
	}
	d.pass(check, t.Name, "the token offers what profile "+d.cfg.Profile+" needs")
	return true
}

// counters judges what the token itself says of its PIN.
func (d *doctor) counters(t hsm.TokenConfig, pin hsm.PINState) bool {
	const check = "pin-counters"
	switch {
	case pin.Uninitialized:
		d.fail(check, t.Name, "the token's user PIN has not been set", "let the security officer initialise the user PIN with the vendor's tool")
		return false
	case pin.Locked:
		d.fail(check, t.Name, "the token says that its user PIN is locked", "let the security officer unlock the token, then check that the PIN file is right")
		return false
	case pin.FinalTry:
		d.fail(check, t.Name, "the token says that the next wrong PIN locks it: no login was tried, not with --try-pin either",
			"log in by hand with the vendor's tool and the right PIN: that resets the counter")
		return false
	case pin.FailedOnce:
		d.warn(check, t.Name, "a wrong PIN has been tried on this token since the last login that succeeded",
			"find out who tried it: a few more lock the token; a login that succeeds resets the counter")
		return true
	}
	d.pass(check, t.Name, "the token counts no failed login")
	return true
}

// pin judges the PIN file's content, and whether the attempt guard lets a login through.
func (d *doctor) pin(ctx context.Context, t hsm.TokenConfig, seen hsm.Inspection) bool {
	if seen.PINFile != nil {
		d.failure("pin-file", t.Name, seen.PINFile, "write the user PIN to the PIN file, and nothing else")
		return false
	}
	return d.guard(ctx, t, seen.Guard)
}

// guard judges whether the attempt guard lets a login through, and clears what stands against it when that was asked for.
func (d *doctor) guard(ctx context.Context, t hsm.TokenConfig, standing error) bool {
	const check = "pin-latch"
	switch {
	case standing == nil:
		d.pass(check, t.Name, "no earlier attempt prevents a login with this PIN")
		return true
	case d.TryPIN:
		if err := hsm.AllowPIN(ctx, d.common, t); err != nil {
			d.failure(check, t.Name, err, "check that stateDir can be written")
			return false
		}
		d.warn(check, t.Name, "cleared: "+standing.Error(), "if the login below failed again, the PIN is wrong: each attempt counts on the token")
		return true
	case errors.Is(standing, guard.ErrStands):
		d.fail(check, t.Name, standing.Error()+"; no login was tried",
			envelope.PINRefusedHint)
		return false
	case errors.Is(standing, guard.ErrState):
		d.failure(check, t.Name, standing, "check that the PIN is right, then run: hsm-kms doctor --try-pin")
		return false
	}
	d.failure(check, t.Name, standing, "find out why the last login failed, in the plugin's log; the plugin tries again by itself, hsm-kms doctor --try-pin at once")
	return false
}
