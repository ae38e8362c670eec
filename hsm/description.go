package hsm

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// description is what a token tells of a key, by attribute. What it does not know or not tell is not in it.
type description map[uint][]byte

// described are the attributes that say which key it is, and whether it may be served.
func described() []uint {
	return []uint{
		pkcs11.CKA_ID, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_ALWAYS_SENSITIVE,
		pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_LOCAL, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_VALUE_LEN,
	}
}

// describe asks for all of them at once: on a network HSM each request is two round trips, and a start waits for those
// of every key of the ring. A token that does not tell one attribute fails the whole request; then each is asked for by
// itself.
func (r *keyReader) describe(s p11.Session, handle p11.Object) (description, error) {
	known, err := r.api.Attributes(s, handle, described())
	if err == nil {
		return known, nil
	}
	if !isNotTold(err) {
		return nil, fmt.Errorf("reading the attributes of a key of ring %s: %w", r.ring, err)
	}
	known = description{}
	for _, attribute := range described() {
		value, err := r.api.Attribute(s, handle, attribute)
		switch {
		case err == nil:
			known[attribute] = value
		case attribute == pkcs11.CKA_ID || !isNotTold(err): // without its CKA_ID a key is none; and the rest says nothing of the key
			return nil, fmt.Errorf("reading attribute 0x%X of a key of ring %s: %w", attribute, r.ring, err)
		}
	}
	return known, nil
}

// isNotTold reports whether an error says that the token does not know an attribute, or does not give it.
func isNotTold(err error) bool {
	return hasRV(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) || hasRV(err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
}

// attributes are those that an auditor asks for. What is not known is taken for the worse.
func (d description) attributes() envelope.Attributes {
	is := func(attribute uint, assumed bool) bool {
		value := d[attribute]
		if len(value) != 1 {
			return assumed
		}
		return value[0] != 0
	}
	return envelope.Attributes{
		Known:   true,
		Private: is(pkcs11.CKA_PRIVATE, false), Sensitive: is(pkcs11.CKA_SENSITIVE, false),
		Extractable: is(pkcs11.CKA_EXTRACTABLE, true), AlwaysSensitive: is(pkcs11.CKA_ALWAYS_SENSITIVE, false),
		NeverExtractable: is(pkcs11.CKA_NEVER_EXTRACTABLE, false), Local: is(pkcs11.CKA_LOCAL, false),
	}
}

// number gives a CK_ULONG attribute; known is false when the token does not give it.
func (d description) number(attribute uint) (n uint64, known bool) {
	value := d[attribute]
	if len(value) != 8 {
		return 0, false
	}
	return binary.NativeEndian.Uint64(value), true
}

// refusal says why a key must not be served; "" when it may. Anyone who can write to the token without login could
// have planted a key that is not CKA_PRIVATE, and knows one that came from outside.
func (r *keyReader) refusal(d description, a envelope.Attributes) string {
	switch {
	case !a.Private:
		return "it is not CKA_PRIVATE: anyone who reaches the token without login could have planted it"
	case a.Extractable:
		return "it is extractable: it could leave the HSM"
	case !a.Sensitive:
		return "it is not CKA_SENSITIVE: its value can be read"
	case !r.allow && !(a.Local && a.AlwaysSensitive && a.NeverExtractable):
		return "it was not made in this HSM, or has not always been sensitive and unextractable: allowImportedKeys would serve it"
	}
	kind, known := d.number(pkcs11.CKA_KEY_TYPE)
	switch {
	case !known:
		return "the token does not report its CKA_KEY_TYPE"
	case !r.fits(kind):
		return fmt.Sprintf("its key type 0x%X does not fit the ring's profile %s", kind, r.profile)
	}
	if size, known := d.number(pkcs11.CKA_VALUE_LEN); known && size != 32 {
		return fmt.Sprintf("it has %d bits; the profile %s requires 256", 8*size, r.profile)
	}
	return ""
}
