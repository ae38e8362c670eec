package stored

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// validate is the API server's ValidateEncryptedObject (envelope/kmsv2/envelope.go).
func (o *Object) validate() error {
	switch {
	case o.Type != Key && o.Type != Seed:
		return fmt.Errorf("unknown type %d of the DEK source", o.Type)
	case len(o.Data) == 0:
		return fmt.Errorf("no data")
	case len(o.DEKSource) == 0:
		return fmt.Errorf("no DEK source")
	case len(o.DEKSource) > maxDEKSource:
		return fmt.Errorf("a DEK source of %d bytes, %d are allowed", len(o.DEKSource), maxDEKSource)
	case len(o.KeyID) == 0:
		return fmt.Errorf("no key_id")
	case len(o.KeyID) > maxKeyID:
		return fmt.Errorf("a key_id of %d bytes, %d are allowed", len(o.KeyID), maxKeyID)
	}
	total := 0
	for _, name := range sortedNames(o.Annotations) {
		if !qualified(name) {
			return fmt.Errorf("the annotation %.64q is not a fully qualified domain name", name)
		}
		total += len(name) + len(o.Annotations[name])
	}
	if total > maxAnnotations {
		return fmt.Errorf("annotations of %d bytes, %d are allowed", total, maxAnnotations)
	}
	return nil
}

func sortedNames(annotations map[string][]byte) []string {
	if len(annotations) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(annotations))
}

// qualified is k8s.io/apimachinery's validation.IsFullyQualifiedDomainName: labels of RFC 1123 in lower case, two at
// least, at most 253 bytes in all; one dot at the end is passed over.
func qualified(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if len(name) > 253 || strings.Count(name, ".") < 1 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(label string) bool {
	if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return strings.IndexFunc(label, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	}) < 0
}
