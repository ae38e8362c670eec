package evidence

import (
	"fmt"
	"slices"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// Finding is one way in which a report does not meet what was required of it.
type Finding struct {
	Resource string `json:"resource"` // empty: it is about the whole
	Problem  string `json:"problem"`
	Objects  int64  `json:"objects"` // how many have it
}

// RequireKey demands that every object of the resources (as an EncryptionConfiguration names them, wildcards included)
// is under keyID and nothing else. It returns what is not, and adds it to the report's findings. A report without any
// object meets no requirement: it looked in the wrong place.
func (r *Report) RequireKey(keyID string, resources []string) []Finding {
	var found []Finding
	known := stored.NewResources()
	for _, resource := range r.Resources {
		wanted := slices.ContainsFunc(resources, func(entry string) bool { return known.Matches(entry, resource.Resource) })
		if !wanted {
			continue
		}
		found = append(found, resource.plaintext()...)
		found = append(found, resource.undecodable()...)
		for _, key := range resource.Keys {
			switch {
			case key.KeyID == keyID && keyID != "":
			case key.KeyID != "":
				found = append(found, Finding{resource.Resource, "under another key: " + Printable(key.KeyID), key.Objects})
			default:
				found = append(found, Finding{resource.Resource, "under another provider: " + Printable(key.Provider), key.Objects})
			}
		}
	}
	if r.Objects == 0 {
		found = append(found, nothing(r))
	}
	r.Findings = append(r.Findings, found...)
	return found
}

// nothing is the finding of a report that saw no object at all.
func nothing(r *Report) Finding {
	return Finding{Problem: fmt.Sprintf("no object at all was found in %d places: is the prefix right?", len(r.Sources))}
}

func (r *Resource) plaintext() []Finding {
	if r.Plaintext == 0 {
		return nil
	}
	return []Finding{{r.Resource, "plain text", r.Plaintext}}
}

func (r *Resource) undecodable() []Finding {
	if r.Undecodable == 0 {
		return nil
	}
	return []Finding{{r.Resource, "undecodable", r.Undecodable}}
}
