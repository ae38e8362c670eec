package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// refusedKeys tells of the keys of the ring that are not served; grave: no other is.
func (d *doctor) refusedKeys(view envelope.View, grave bool) (any bool) {
	for _, v := range view.Versions {
		if v.State != envelope.Refused {
			continue
		}
		any = true
		detail := fmt.Sprintf("%s is not served: %s", nameOf(v), v.Refused)
		for _, token := range v.Tokens {
			if grave {
				d.fail("key-attributes", token, detail, refusalHint(v))
			} else {
				d.warn("key-attributes", token, detail, refusalHint(v))
			}
		}
	}
	return any
}

// refusalHint goes by the attributes in the order in which package hsm looks at them.
func refusalHint(v envelope.Version) string {
	a := v.Attributes
	switch {
	case strings.Contains(v.Refused, "refuseKeys"):
		return "take it out of refuseKeys when the rehearsal is over"
	case strings.Contains(v.Refused, "the token cannot use it now"), strings.Contains(v.Refused, "does not say what it is"):
		return "see the vendor's log for that key, and keep it: data may be under it. It is served again when the token can use it"
	case !a.Private:
		return "find out who put it there; it is not served and does no harm. Keys of the ring are made with: hsm-kms keys create"
	case a.Extractable, !a.Sensitive:
		return "make the next key in the HSM with: hsm-kms keys rotate; attributes of this one cannot be changed"
	case !a.Local, !a.AlwaysSensitive, !a.NeverExtractable:
		return "set allowImportedKeys: true if you trust the ceremony that made it; otherwise make one in the HSM with: hsm-kms keys rotate"
	}
	if strings.Contains(v.Refused, "CKM_AES_ECB") {
		return "make the next key for this profile with: hsm-kms keys rotate; a key that is limited to AES-GCM can be served in profile aes-gcm alone"
	}
	return "check that profile is that of the ring, and find out who made the key; it is not served and does no harm"
}

// attributes tells of the keys that are served: what an auditor asks.
func (d *doctor) attributes(served []envelope.Version) {
	const check = "key-attributes"
	var imported []string
	for _, v := range served {
		if a := v.Attributes; !a.Local || !a.AlwaysSensitive || !a.NeverExtractable {
			imported = append(imported, nameOf(v))
		}
	}
	if len(imported) > 0 {
		d.warn(check, "", "served, and a copy outside the HSM may exist of: "+strings.Join(imported, ", "),
			"this is what allowImportedKeys accepts; rotate to a key that is made in the HSM if the token can make one")
		return
	}
	d.pass(check, "", count(len(served), "key")+": private, sensitive, not extractable, and always so; made in the HSM")
}

// sameKeys compares what the tokens that were read hold. It reports whether two different keys have one CKA_ID, from which
// more follows.
func (d *doctor) sameKeys(read []string, served []envelope.Version) (clash bool) {
	const check = "same-keys"
	for i, v := range served {
		if other := slices.IndexFunc(served[:i], func(u envelope.Version) bool { return u.ID.Version == v.ID.Version }); other >= 0 {
			clash = true
			d.fail(check, "", fmt.Sprintf("one CKA_ID and two different keys: %s on %s, %s on %s", served[other].ID, strings.Join(served[other].Tokens, ","),
				v.ID, strings.Join(v.Tokens, ",")), envelope.ConflictHint)
		}
	}
	if clash {
		return true
	}
	same := true
	for _, v := range served {
		lacking := slices.DeleteFunc(slices.Clone(read), func(name string) bool { return slices.Contains(v.Tokens, name) })
		for _, name := range lacking {
			advice := fmt.Sprintf("copy the key from %s to %s with the vendor's tool", v.Tokens[0], name)
			if v.State == envelope.Pending && v.Activation.After(time.Now()) {
				d.warn(check, name, fmt.Sprintf("lacks %s, which becomes current at %s", v.ID, v.Activation.Format("2006-01-02 15:04:05Z")), advice+" before then")
				continue
			}
			same = false
			d.fail(check, name, fmt.Sprintf("lacks %s, which %s holds: it cannot take over", v.ID, strings.Join(v.Tokens, ", ")), advice)
		}
	}
	switch {
	case same && len(read) > 1:
		d.pass(check, "", "the same keys, by fingerprint: "+strings.Join(read, ", "))
	case len(read) < len(d.tokens):
		d.warn(check, "", fmt.Sprintf("%d of %d tokens could be compared", len(read), len(d.tokens)), "fix the findings about the others, and run this again")
	}
	return false
}

// nameOf is the key_id, or the CKA_ID when a key has none.
func nameOf(v envelope.Version) string {
	if v.ID.Fingerprint == [envelope.FingerprintSize]byte{} {
		return fmt.Sprintf("the key with CKA_ID %x", v.CKAID)
	}
	return v.ID.String()
}
