package migrate

import (
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
)

// Outcome is what a run has done. Field names are a contract (docs/evidence.md).
type Outcome struct {
	RequiredKey string `json:"requiredKey"`
	// Newer are the keys of the ring that are newer than its current one, if that is the required one.
	Newer     []evidence.NewerKey `json:"newer"`
	Servers   []Proof             `json:"servers"`   // one for each API server and resource
	Resources []Resource          `json:"resources"` // those that were asked for and are in etcd, as they were at the beginning
	Found     int64               `json:"found"`     // objects that were not under the key
	Rewritten int64               `json:"rewritten"`
	Gone      int64               `json:"gone"` // deleted meanwhile, by somebody else
	Failed    int64               `json:"failed"`
	// Failures names the first evidence.MaxNamed of them.
	Failures    []Failure `json:"failures"`
	Interrupted bool      `json:"interrupted"` // it ended before it was through
	DryRun      bool      `json:"dryRun"`
	Seconds     float64   `json:"seconds"` // how long the run took; for a dry run, the least time that rewriting would take at Options.Rate
	// Report is what etcd held at the end, held against the requirement; nil when it did not come to that.
	Report *evidence.Report `json:"report"`
}

// Proof says what one API server writes one resource under.
type Proof struct {
	Server   string `json:"server"`
	Resource string `json:"resource"`
	OK       bool   `json:"ok"`     // under the key that is required
	Writes   string `json:"writes"` // "plain text", or the provider as in a report; empty: nothing was seen
	KeyID    string `json:"keyID"`  // of a KMS provider
	// Expected is the provider that the EncryptionConfiguration has; empty: none was given.
	Expected string `json:"expected,omitempty"`
	// Skipped: there is no object of this resource to prove it with, or (Error says so) no API leads to it.
	Skipped bool   `json:"skipped"`
	Error   string `json:"error"` // why nothing was seen
	// Behind is the Service (NAMESPACE/NAME) whose API servers keep the resource and were not named.
	Behind string `json:"behind,omitempty"`
}

// Resource is what there is of one resource.
type Resource struct {
	Resource string `json:"resource"`
	Objects  int64  `json:"objects"`
	Found    int64  `json:"found"` // not under the key
}

// Failure is an object that could not be rewritten.
type Failure struct {
	Key    string `json:"key"` // of etcd
	Reason string `json:"reason"`
}

// maxReason bounds what is kept of why one object or server failed, in bytes.
const maxReason = 2048

// brief is an error's text, cut.
func brief(err error) string {
	text := err.Error()
	if len(text) > maxReason {
		return fmt.Sprintf("%s...(%d bytes)", text[:maxReason], len(text))
	}
	return text
}

// unproven reports whether an API server does not write under the key, or may not.
func (o *Outcome) unproven() bool {
	for _, p := range o.Servers {
		if !p.OK && !p.Skipped {
			return true
		}
	}
	return false
}

// Clean reports whether everything that was asked for is under the key.
func (o *Outcome) Clean() bool { return o.Report != nil && len(o.Report.Findings) == 0 }

// Describe puts a proof in words that are safe for a terminal.
func Describe(p Proof) string {
	resource := evidence.Printable(p.Resource)
	switch {
	case p.OK:
		return fmt.Sprintf("%s writes %s under the key", p.Server, resource)
	case p.Skipped && p.Error == "":
		return fmt.Sprintf("there are no %s to see what %s writes", resource, p.Server)
	case p.Error != "":
		return fmt.Sprintf("%s, %s: %s", p.Server, resource, evidence.Printable(p.Error))
	case p.Expected != "" && p.Writes != p.Expected:
		return fmt.Sprintf("%s writes %s as %s, and the EncryptionConfiguration has %s", p.Server, resource, evidence.Printable(p.Writes), evidence.Printable(p.Expected))
	case envelope.KeyOf(p.KeyID) != p.KeyID:
		return fmt.Sprintf("%s writes %s in an outage hold, under %s: its HSM is away", p.Server, resource, evidence.Printable(p.KeyID))
	case p.KeyID != "":
		return fmt.Sprintf("%s writes %s under another key: %s", p.Server, resource, evidence.Printable(p.KeyID))
	}
	return fmt.Sprintf("%s writes %s as %s", p.Server, resource, evidence.Printable(p.Writes))
}
