package evidence

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

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
		t.problems = named(t.problems, Problem{Key: string(o.Key), Reason: reason(err), Past: o.Past})
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
	problems := firstNamed(other.problems)
	t.problems = append(t.problems, problems[:min(len(problems), MaxNamed-len(t.problems))]...)
	return t.bounded()
}

func (t *tally) bounded() error {
	if n := len(t.rows) + len(t.broken); n > maxRows {
		return fmt.Errorf("counting: more than %d different resources and keys: this is not the store of a Kubernetes cluster, or somebody fills it with made-up ones", maxRows)
	}
	return nil
}

// into puts the sums into the report: newest revisions into Resources, others into History. It replaces the findings, so
// it comes before anything that adds one.
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
