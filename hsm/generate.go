package hsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/ThalesIgnite/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/latch"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Generate makes a key of the ring on the token, with the CKA_ID ckaID, through crypto11, which is closed
// again before it returns. The module must not be in use in this process: crypto11 initialises and finalises
// it. The caller reads the key back and looks at what became of it, also after an error: a token may have done
// what it reports as failed.
func Generate(ctx context.Context, common Config, cfg TokenConfig, ckaID []byte) error {
	set, err := Open(common, []TokenConfig{cfg})
	if err != nil {
		return err
	}
	t := set.tokens[0]
	slot, info, err := t.lookUp()
	if err != nil {
		return err
	}
	if err := mayLogin(info); err != nil {
		return err
	}
	pin, file, err := pinfile.Read(cfg.PINFile)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	defer pin.Wipe()
	var context11 *crypto11.Context
	clean := info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW == 0
	err = t.latch.Attempt(ctx, identity(info), file, clean, func() (latch.Outcome, error) {
		t.warnOfCounter(clean)
		number := int(slot)
		// crypto11 takes the PIN as a string, which nobody can wipe; this process ends soon.
		context11, err = crypto11.Configure(&crypto11.Config{
			Path: cfg.Module, SlotNumber: &number, Pin: string(pin.Bytes()), MaxSessions: 2,
		})
		return configureOutcome(err)
	})
	if err != nil {
		return refusedOr(err, "opening the token for key generation")
	}
	err = generate(context11, common, ckaID)
	if closeErr := context11.Close(); closeErr != nil && err == nil {
		return fmt.Errorf("closing the token after key generation: %w", closeErr)
	}
	return err
}

// lookUp finds the slot, with the module initialised for just as long.
func (t *Token) lookUp() (slot uint, info pkcs11.TokenInfo, err error) {
	if err := t.mod.initialize(t.api); err != nil {
		return 0, info, err
	}
	slot, info, err = t.findSlot(t.api)
	if endErr := t.api.Finalize(); endErr != nil && err == nil {
		err = fmt.Errorf("finalising module %s: %w", t.mod.path, endErr)
	}
	t.mod.initialized = false
	return slot, info, err
}

// refusedOr gives a refused PIN the error and the hint that it has everywhere.
func refusedOr(err error, what string) error {
	if errors.Is(err, latch.ErrStands) || mentionsPIN(err) {
		return pinRefused(err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func pinRefused(err error) error {
	return hint.Wrap(fmt.Errorf("%w: %w", envelope.ErrPINRefused, err),
		"correct the PIN file: no further attempt is made until it changes, because tokens lock for good; under systemd's LoadCredential=, or when the PIN was right, allow one more with: hsm-kms doctor --try-pin")
}

// configureOutcome tells the latch what a crypto11.Configure means. crypto11 wraps with %v, so that no
// pkcs11.Error is left in the chain: its text is all there is.
func configureOutcome(err error) (latch.Outcome, error) {
	switch {
	case err == nil:
		return latch.Succeeded, nil
	case mentionsPIN(err):
		return latch.Refused, err
	}
	return latch.Undecided, err
}

func mentionsPIN(err error) bool { return strings.Contains(err.Error(), "CKR_PIN_") }

// generate makes the key with every attribute that the token accepts. Those beyond the required are left out
// step by step: opencryptoki, for one, refuses several of them.
func generate(c *crypto11.Context, common Config, ckaID []byte) error {
	cipher := crypto11.CipherAES
	if common.Profile == envelope.HMACKDF {
		cipher = crypto11.CipherGeneric
	}
	var err error
	for _, optional := range [][]*pkcs11.Attribute{
		{allowedMechanisms(common.Profile), unset(pkcs11.CKA_MODIFIABLE), unset(pkcs11.CKA_COPYABLE)},
		{unset(pkcs11.CKA_MODIFIABLE), unset(pkcs11.CKA_COPYABLE)},
		{unset(pkcs11.CKA_MODIFIABLE)},
		nil,
	} {
		template := crypto11.NewAttributeSet()
		template.AddIfNotPresent(append(required(common, ckaID), optional...))
		_, err = c.GenerateSecretKeyWithAttributes(template, 256, cipher)
		if err == nil {
			return nil
		}
		if !refusesTemplate(err) {
			break
		}
	}
	return fmt.Errorf("generating a key: %w", err)
}

// refusesTemplate tells the errors that say that nothing was made because of an attribute.
func refusesTemplate(err error) bool {
	text := err.Error()
	return strings.Contains(text, "CKR_ATTRIBUTE_") || strings.Contains(text, "CKR_TEMPLATE_")
}

func unset(attribute uint) *pkcs11.Attribute { return pkcs11.NewAttribute(attribute, false) }

// required is the template that every key of ours has (PKCS#11 v2.40, sections 4.4, 4.6.2 and 4.9.2).
// CKA_DESTROYABLE keeps its default, true: keys retire needs it.
func required(common Config, ckaID []byte) []*pkcs11.Attribute {
	gcm := common.Profile == envelope.AESGCM
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_ID, ckaID),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, common.Ring),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, gcm),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, gcm),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, !gcm),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, !gcm),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_DERIVE, false),
	}
}

// allowedMechanisms limits the key to its profile's mechanism: AES-ECB of a zero block would give the GCM hash
// key away to whoever can use the token.
func allowedMechanisms(p envelope.Profile) *pkcs11.Attribute {
	mechanism := uint64(pkcs11.CKM_AES_GCM)
	if p == envelope.HMACKDF {
		mechanism = pkcs11.CKM_SHA256_HMAC
	}
	return pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, binary.NativeEndian.AppendUint64(nil, mechanism))
}
