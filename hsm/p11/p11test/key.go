package p11test

import (
	"slices"

	"github.com/miekg/pkcs11"
)

// AESKey is the template of an AES-256 key as hsm-kms makes them, for tests that make one by other means; different replaces
// attributes of it, or adds some.
func AESKey(label string, ckaID []byte, different ...*pkcs11.Attribute) []*pkcs11.Attribute {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
	}
	if ckaID != nil {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, ckaID))
	}
	for _, d := range different {
		template = slices.DeleteFunc(template, func(a *pkcs11.Attribute) bool { return a.Type == d.Type })
	}
	return append(template, different...)
}
