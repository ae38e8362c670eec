// Package keyops makes, lists, rotates and binds the keys of the ring. It prints nothing: what was done is returned, also beside
// an error where something was done or may have been.
//
// It depends on app for the tokens, the lock and the findings, on doctor for whether this user may make objects, on hsm for what is
// made on a token, on envelope for what the ring says, on kmsplugin and kmsplugin/socket for what the plugin of this node does, and
// on config and hint.
//
// Only one command at a time changes the ring from one machine: each function that does takes the lock of stateDir. The
// functions hold nothing else that is shared.
package keyops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Made is a key that was made, or may have been.
type Made struct {
	envelope.Version
	// Served: the key is there and can be used. Otherwise the error beside it says what became of the key.
	Served bool
	// Bound is what became of the binding of a new ring; zero: none was asked for.
	Bound Bound
	// Meanwhile are other keys that appeared on the token while a rotation made this one.
	Meanwhile []envelope.Version
}

// StateUnknown is the state of a key that may have been made.
const StateUnknown envelope.State = "unknown"

// Name is what a version is called in texts: its key_id, or its CKA_ID when it has none.
func Name(v envelope.Version) string {
	if v.ID.Fingerprint != [envelope.FingerprintSize]byte{} {
		return v.ID.String()
	}
	return fmt.Sprintf("CKA_ID %x", v.CKAID)
}

// lockToMake checks that what this user makes on the tokens is of use to the plugin, and locks the ring.
func lockToMake(a *app.Context) (unlock func(), err error) {
	if err := doctor.MayMakeObjects(a.Config); err != nil {
		return nil, app.Finding(err)
	}
	return app.LockKeys(a.Config.StateDir)
}

// makeKey makes a key in the first token and says what became of it. Without a key nothing was made. The caller holds the
// lock of stateDir.
func makeKey(ctx context.Context, a *app.Context, id []byte) (*Made, error) {
	common, tokens, err := a.HSM()
	if err != nil {
		return nil, err
	}
	made, err := hsm.Generate(a.Acting(ctx), common, tokens[0], id)
	m := &Made{Version: envelope.Version{Key: made.Key, State: envelope.Current, Tokens: []string{tokens[0].Name}}}
	if a.Read != nil {
		m.State = envelope.Retained // no key of a read ring is current
	}
	if m.Activation.After(time.Now()) {
		m.State = envelope.Pending
	}
	if made.Key.Refused != "" {
		m.State = envelope.Refused
	}
	switch {
	case made.Outcome == hsm.Made && made.Hangs:
		return m, hint.Wrap(fmt.Errorf("the key with CKA_ID %x was made, and a call into the module has not returned: nothing more was looked at", id),
			"when the HSM answers again, run: hsm-kms keys list")
	case made.Outcome == hsm.Made && made.Key.Refused == "":
		m.Served = true
		return m, nil
	case made.Outcome == hsm.Made:
		return m, app.Finding(hint.Wrap(fmt.Errorf("the key with CKA_ID %x was made and is not served: %s", id, made.Key.Refused),
			"leave it there, it does no harm: hsm-kms keys list shows it; docs/hsm-support.md says what a token must offer"))
	case made.Outcome == hsm.Unknown:
		m.State, m.ID.Ring, m.Tokens = StateUnknown, a.Config.KeyRing, []string{}
		return m, hint.Wrap(fmt.Errorf("it is unknown whether the key with CKA_ID %x was made: %w", id, err),
			"when the HSM answers again, check whether it is there: hsm-kms keys list")
	case errors.Is(err, hsm.ErrProfile):
		return nil, app.Finding(fmt.Errorf("no key was made: %w", err))
	case envelope.IsPIN(err), errors.Is(err, hsm.ErrConfiguration):
		return nil, err // as everywhere
	}
	return nil, fmt.Errorf("no key was made: %w", err)
}
