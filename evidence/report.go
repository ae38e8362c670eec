package evidence

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// Report is what one reading found. Field names are a contract (section 8 of the design).
type Report struct {
	Time        string     `json:"time"`     // RFC 3339, when the reading began
	Revision    int64      `json:"revision"` // of the first source
	Objects     int64      `json:"objects"`
	Plaintext   int64      `json:"plaintext"`
	Undecodable int64      `json:"undecodable"`
	Resources   []Resource `json:"resources"`
	// History is about the revisions in a snapshot that are not the newest of their key: a restore brings them back
	// too. Live, etcd does not show them.
	History []Resource `json:"history"`
	Sources []Reading  `json:"sources"`
	// Restricted are the resources that the report was restricted to; empty: it is about all. A caller that takes a report for
	// evidence that something is nowhere must look here.
	Restricted []string `json:"restricted"`
	// Accepted are the ranges in Unreadable of which somebody answered that nothing in them matters.
	Accepted []string `json:"accepted,omitempty"`
	// UndecodableObjects names the first MaxNamed of them.
	UndecodableObjects []Problem `json:"undecodableObjects"`
	Findings           []Finding `json:"findings"` // empty: there are none, and all requirements are met
	// Required is what was required of all objects of some resources; nil: nothing was.
	Required *Required `json:"required,omitempty"`
	// Names are the keys that stand in etcd under more than one provider name.
	Names []KeyNames `json:"providerNames,omitempty"`
}

// Resource is what is held of one resource.
type Resource struct {
	// Resource is named as in an EncryptionConfiguration: secrets, widgets.example.com. What cannot be attributed to a
	// resource is named by the beginning of its keys, such as /openshift.io/routes.
	Resource    string `json:"resource"`
	Total       int64  `json:"total"`
	Plaintext   int64  `json:"plaintext"`
	Undecodable int64  `json:"undecodable"`
	Keys        []Key  `json:"keys"`
}

// Key is one key that objects of a resource are encrypted under.
type Key struct {
	Provider string `json:"provider"` // kms:v2:NAME, aescbc:v1:KEY and the like
	KeyID    string `json:"keyID"`    // kms:v2; else empty
	Objects  int64  `json:"objects"`
	DEKs     int64  `json:"deks"` // distinct; 0: the provider has none
}

// Problem is one object and what is wrong with it.
type Problem struct {
	Key    string `json:"key"` // of etcd
	KeyID  string `json:"keyID,omitempty"`
	Reason string `json:"reason"`
	Past   bool   `json:"past,omitempty"` // an older revision in a snapshot
}

// MaxNamed bounds how many objects a list names: the first by their keys. More are counted.
const MaxNamed = 10_000

// named adds a problem to a list that firstNamed will give, which has room for a while. Pages come in any order.
func named(list []Problem, problem Problem) []Problem {
	if list = append(list, problem); len(list) == 2*MaxNamed {
		list = firstNamed(list)
	}
	return list
}

// firstNamed sorts a list, and leaves MaxNamed of it.
func firstNamed(list []Problem) []Problem {
	slices.SortStableFunc(list, func(a, b Problem) int { return cmp.Compare(a.Key, b.Key) })
	return list[:min(len(list), MaxNamed)]
}

// maxRows bounds the distinct (resource, key) pairs: no cluster has more, and memory must not depend on what somebody
// wrote to etcd.
const maxRows = 100_000

// KeyNames is a key of a KMS provider that objects name by more than one provider name: the provider was renamed in an
// EncryptionConfiguration, or API servers differ in what they call it.
type KeyNames struct {
	KeyID     string   `json:"keyID"`
	Providers []string `json:"providers"`
}

// ReportOptions say what to count.
type ReportOptions struct {
	Resources []string // only these, as an EncryptionConfiguration names them; empty: all
	// AllowEmpty: a resource of that name, a prefix or a whole store without any object is no finding.
	AllowEmpty bool
	Known      *stored.Resources // nil: what kube-apiserver stores
	Now        func() time.Time
	Progress   Progress // nil: nobody watches
}

// Build reads the sources whole, one after the other, and counts. No HSM is asked. Errors are those of ReadWhole.
func Build(ctx context.Context, sources []Source, opts ReportOptions) (*Report, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	all := newTally(opts, false)
	report := &Report{Time: opts.Now().UTC().Format(time.RFC3339Nano), Restricted: append([]string{}, opts.Resources...)}
	for _, source := range sources {
		var one *tally
		reading, err := ReadWhole(ctx, source, func(corrected bool) func([]Object) error {
			one = newTally(opts, corrected)
			return one.add
		})
		if err != nil {
			return nil, err
		}
		one.cluster.into(&reading)
		reading.Unreadable = append([]string{}, reading.Unreadable...)
		report.Sources = append(report.Sources, reading)
		if err := all.merge(one); err != nil {
			return nil, err
		}
	}
	if len(report.Sources) > 0 {
		report.Revision = report.Sources[0].Revision
	}
	all.into(report)
	if !opts.AllowEmpty {
		report.Add(all.missing(report, opts.Resources))
	}
	return report, nil
}

// names lists the keys that have more than one provider name.
func names(report *Report) []KeyNames {
	providers := map[string][]string{}
	for _, resource := range report.Resources {
		for _, key := range resource.Keys {
			if key.KeyID != "" && !slices.Contains(providers[key.KeyID], key.Provider) {
				providers[key.KeyID] = append(providers[key.KeyID], key.Provider)
			}
		}
	}
	var list []KeyNames
	for _, keyID := range slices.Sorted(maps.Keys(providers)) {
		if is := providers[keyID]; len(is) > 1 {
			slices.Sort(is)
			list = append(list, KeyNames{keyID, is})
		}
	}
	return list
}

// reason is an error's text without the sentinel that every undecodable value has.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), stored.ErrUndecodable.Error()+": ")
}
