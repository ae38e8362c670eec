package evidence

import (
	"cmp"
	"context"
	"fmt"
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

// MaxNamed bounds how many objects a list names. More are counted.
const MaxNamed = 10_000

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

// place is what a row of the report counts.
type place struct {
	resource string
	past     bool
	unknown  bool // it is encrypted, and resource is where it is, which is that of no known one
	provider stored.Provider
	name     string
	keyID    string
}

// row counts the objects of one place by their DEKs, which must be distinct; the zero one: there is none.
type row map[stored.DEK]*int64

func (r row) of(dek stored.DEK) *int64 {
	n := r[dek]
	if n == nil {
		n = new(int64)
		r[dek] = n
	}
	return n
}

// sums are the objects, and the distinct DEKs that they have.
func (r row) sums() (objects, deks int64) {
	for dek, n := range r {
		if objects += *n; *n > 0 && dek != (stored.DEK{}) {
			deks++
		}
	}
	return objects, deks
}

// tally counts objects. It is used by one goroutine.
type tally struct {
	filter   filter
	ledger   Ledger
	rows     map[place]row
	broken   map[place]*int64 // undecodable, by resource
	problems []Problem
	cluster  cluster
	prefixes map[string]bool // those below which there is an object
}

func newTally(opts ReportOptions, corrected bool) *tally {
	return &tally{
		filter: newFilter(opts.Known, opts.Resources), ledger: NewLedger(corrected), rows: map[place]row{}, broken: map[place]*int64{},
		prefixes: map[string]bool{},
	}
}

func (t *tally) add(page []Object) error {
	t.problems = withoutCorrected(t.problems, page)
	for i := range page {
		if err := t.count(&page[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *tally) count(o *Object) error {
	where, wanted := t.filter.of(o)
	if o.Corrects && (o.Deleted || !wanted) {
		t.ledger.Put(o, nil)
	}
	if o.Deleted {
		return nil
	}
	t.cluster.look(o)
	if prefix := o.Key[:max(0, len(o.Key)-len(o.Path)-1)]; !t.prefixes[string(prefix)] {
		t.prefixes[string(prefix)] = true
	}
	if !wanted {
		return nil
	}
	at := place{resource: where.Resource, past: o.Past, unknown: !where.Known && stored.IsEncrypted(o.Value)}
	value, err := stored.Parse(o.Value)
	if err != nil {
		if t.broken[at] == nil {
			t.broken[at] = new(int64)
		}
		t.ledger.Put(o, t.broken[at])
		if len(t.problems) < MaxNamed {
			t.problems = append(t.problems, Problem{Key: string(o.Key), Reason: reason(err), Past: o.Past})
		}
		return t.bounded()
	}
	at.provider, at.name, at.keyID = value.Provider, value.Name, value.Object.KeyID
	r := t.rows[at]
	if r == nil {
		r = row{}
		t.rows[at] = r
		if err := t.bounded(); err != nil {
			return err
		}
	}
	var dek stored.DEK
	if len(value.Object.DEKSource) > 0 {
		dek = value.Object.DEK()
	}
	t.ledger.Put(o, r.of(dek))
	return nil
}

// merge adds what another one counted.
func (t *tally) merge(other *tally) error {
	for at, r := range other.rows {
		if t.rows[at] == nil {
			t.rows[at] = row{}
		}
		for dek, n := range r {
			*t.rows[at].of(dek) += *n
		}
	}
	for at, n := range other.broken {
		if t.broken[at] == nil {
			t.broken[at] = new(int64)
		}
		*t.broken[at] += *n
	}
	maps.Copy(t.prefixes, other.prefixes)
	t.problems = append(t.problems, other.problems[:min(len(other.problems), MaxNamed-len(t.problems))]...)
	return t.bounded()
}

func (t *tally) bounded() error {
	if n := len(t.rows) + len(t.broken); n > maxRows {
		return fmt.Errorf("counting: more than %d different resources and keys: this is not the store of a Kubernetes cluster, or somebody fills it with made-up ones", maxRows)
	}
	return nil
}

// into writes the sums.
func (t *tally) into(report *Report) {
	now, past := map[string]*Resource{}, map[string]*Resource{}
	of := func(at place) *Resource {
		m := now
		if at.past {
			m = past
		}
		if m[at.resource] == nil {
			m[at.resource] = &Resource{Resource: at.resource, Keys: []Key{}}
		}
		return m[at.resource]
	}
	for at, n := range t.broken {
		if *n > 0 {
			r := of(at)
			r.Total += *n
			r.Undecodable += *n
		}
	}
	for at, row := range t.rows {
		objects, deks := row.sums()
		if objects == 0 {
			continue // all of them were corrected away
		}
		r := of(at)
		r.Total += objects
		if at.provider == stored.Plain {
			r.Plaintext += objects
			continue
		}
		v := stored.Value{Provider: at.provider, Name: at.name}
		r.Keys = append(r.Keys, Key{Provider: v.Text(), KeyID: at.keyID, Objects: objects, DEKs: deks})
	}
	report.Resources, report.History = inOrder(now), inOrder(past)
	for _, r := range report.Resources {
		report.Objects += r.Total
		report.Plaintext += r.Plaintext
		report.Undecodable += r.Undecodable
	}
	report.UndecodableObjects = append([]Problem{}, t.problems...)
	report.Findings = []Finding{}
	report.Names = names(report)
	report.Add(t.unattributed())
}

// unattributed are the findings of what is encrypted and of no known resource.
func (t *tally) unattributed() (found []Finding) {
	unknown := map[string]int64{} // by where it is
	for at, n := range t.broken {
		if at.unknown && *n > 0 {
			unknown[at.resource] += *n
		}
	}
	for at, row := range t.rows {
		if objects, _ := row.sums(); at.unknown && objects > 0 {
			unknown[at.resource] += objects
		}
	}
	for _, where := range slices.Sorted(maps.Keys(unknown)) {
		found = append(found, Finding{where, "encrypted, and of no known resource: --resource-path RESOURCE=" + Printable(where) + " names it", unknown[where]})
	}
	return found
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

func inOrder(m map[string]*Resource) []Resource {
	list := make([]Resource, 0, len(m))
	for _, r := range m {
		slices.SortFunc(r.Keys, func(a, b Key) int {
			return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.KeyID, b.KeyID))
		})
		list = append(list, *r)
	}
	slices.SortFunc(list, func(a, b Resource) int { return cmp.Compare(a.Resource, b.Resource) })
	return list
}

// reason is an error's text without the sentinel that every undecodable value has.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), stored.ErrUndecodable.Error()+": ")
}
