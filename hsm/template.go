package hsm

import (
	"encoding/binary"
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// optional are the attributes that a key gets where the token takes them, in the order in which they are tried:
// opencryptoki, for one, refuses several of them.
func optional(profile envelope.Profile) [][]*pkcs11.Attribute {
	return [][]*pkcs11.Attribute{
		{allowedMechanisms(profile), unset(pkcs11.CKA_MODIFIABLE), unset(pkcs11.CKA_COPYABLE)},
		{unset(pkcs11.CKA_MODIFIABLE), unset(pkcs11.CKA_COPYABLE)},
		{unset(pkcs11.CKA_MODIFIABLE)},
		nil,
	}
}

func unset(attribute uint) *pkcs11.Attribute { return pkcs11.NewAttribute(attribute, false) }

// required is the template that every key of ours has (PKCS#11 v2.40, sections 4.4, 4.6.2 and 4.9.2).
// CKA_DESTROYABLE keeps its default, true: keys retire needs it.
func required(profile envelope.Profile, label string, ckaID []byte, onToken bool) []*pkcs11.Attribute {
	gcm := profile.UsesAES()
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_ID, ckaID),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, onToken),
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

// allowedMechanisms limits the key to its profile's mechanisms: AES-ECB of a zero block would give the GCM hash
// key away to anyone who can use the token, so only a profile that needs it for the fingerprint has it.
func allowedMechanisms(p envelope.Profile) *pkcs11.Attribute {
	mechanisms := []uint64{pkcs11.CKM_AES_GCM}
	switch p {
	case envelope.HMACKDF:
		mechanisms = []uint64{pkcs11.CKM_SHA256_HMAC}
	case envelope.AESGCMHSMIV:
		mechanisms = append(mechanisms, pkcs11.CKM_AES_ECB)
	}
	var value []byte
	for _, m := range mechanisms {
		value = binary.NativeEndian.AppendUint64(value, m)
	}
	return pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, value)
}

// refusesTemplate reports whether an error says that nothing was made because of an attribute.
func refusesTemplate(err error) bool {
	var rv pkcs11.Error
	if !errors.As(err, &rv) {
		return false
	}
	switch rv {
	case pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
		pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_TEMPLATE_INCOMPLETE, pkcs11.CKR_TEMPLATE_INCONSISTENT:
		return true
	}
	return false
}

// cannotMake reports whether an error says that the token makes no such keys at all.
func cannotMake(err error) bool {
	var rv pkcs11.Error
	return errors.As(err, &rv) && keyCannot(p11.RV(rv))
}
