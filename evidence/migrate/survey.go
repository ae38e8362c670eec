package migrate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
)

// maxResources bounds the resources that are counted apart: memory must not depend on what somebody wrote to etcd.
const maxResources = 10_000

// samplesKept is how many objects of a resource are kept to prove with: one may be gone or guarded by a webhook.
const samplesKept = 3

// selector tells which objects of etcd the work is about, and which of them are not under the key. It is used by one
// goroutine.
type selector struct {
	opts   *Options
	wanted map[string]bool // by resource
}

func newSelector(opts *Options) *selector {
	return &selector{opts: opts, wanted: map[string]bool{}}
}

// selected is an object of etcd that the work is about.
type selected struct {
	Object
	Key         string
	Revision    int64
	known       bool  // it is of a known resource
	addressable bool  // it has the form of an object of the API
	broken      error // why no API server can decode it
	last        error // why the last attempt failed
	under       under
	found       bool // it is not under the key
}

// under is what a value is encrypted by.
type under struct {
	provider string // as in a report; empty: plain text
	keyID    string
}

func underOf(value []byte) (under, error) {
	v, err := stored.Parse(value)
	if err != nil {
		return under{}, err
	}
	return under{v.Text(), v.Object.KeyID}, nil
}

// meets reports what evidence.Report.RequireKey demands of every object, and that its provider is the one that the
// EncryptionConfiguration has for the resource, if there is one.
func (o *Options) meets(resource string, u under) bool {
	return u.keyID == o.RequiredKey && u.keyID != "" && (o.Expected == nil || u.provider == o.Expected.Writes(resource))
}

// expected is the provider that the EncryptionConfiguration has for a resource; empty: there is no configuration.
func (o *Options) expected(resource string) string {
	if o.Expected == nil {
		return ""
	}
	return cmp.Or(o.Expected.Writes(resource), plainText)
}

const plainText = "plain text"

// text is the provider in words, and full with the key_id.
func (u under) text() string { return cmp.Or(u.provider, plainText) }

func (u under) full() string { return strings.TrimSpace(u.text() + " " + u.keyID) }

// of returns ok false for an object of another resource.
func (s *selector) of(o *evidence.Object) (object selected, ok bool) {
	place := s.opts.Known.Of(o.Key, o.Path)
	if !s.wants(place.Resource) {
		return selected{}, false
	}
	u, err := underOf(o.Value)
	return selected{
		Object: Object{place.Resource, place.Namespace, place.Name}, Key: string(o.Key), Revision: o.Revision, known: place.Known, addressable: place.Known && place.Name != "",
		broken: err, under: u, found: err != nil || !s.opts.meets(place.Resource, u),
	}, true
}

// wants reports whether a resource was asked for.
func (s *selector) wants(resource string) bool {
	wanted, seen := s.wanted[resource]
	if !seen {
		wanted = slices.ContainsFunc(s.opts.Resources, func(entry string) bool { return stored.Matches(entry, resource) })
		if len(s.wanted) < maxResources {
			s.wanted[resource] = wanted
		}
	}
	return wanted
}

// surveyed is what is known of one resource.
type surveyed struct {
	Resource
	rest    int64 // objects that are under the key
	samples []sample
	behind  string // the Service (NAMESPACE/NAME) whose API servers keep it; empty: kube-apiserver does
}

func (r *surveyed) group() string { return groupOf(r.Resource.Resource) }

func groupOf(resource string) string {
	_, group, _ := strings.Cut(resource, ".")
	return group
}

// sample is an object that can show what an API server writes.
type sample struct {
	selected
	source evidence.Source
}

// survey counts what there is and what is to be done, and keeps a few objects of each resource.
func survey(ctx context.Context, opts *Options) ([]*surveyed, error) {
	found := map[string]*surveyed{}
	for _, source := range opts.Sources {
		var one *surveyor
		_, err := evidence.ReadWhole(ctx, source, func(corrected bool) func([]evidence.Object) error {
			one = &surveyor{
				selector: newSelector(opts), source: source, ledger: evidence.NewLedger(corrected), found: map[string]*surveyed{},
			}
			return one.add
		})
		if err != nil {
			return nil, err
		}
		for resource, r := range one.found {
			if r.Objects == 0 {
				continue // all of them were deleted while etcd was read
			}
			if found[resource] == nil {
				found[resource] = r
				continue
			}
			found[resource].merge(r)
		}
		if len(found) > maxResources {
			return nil, errTooMany()
		}
	}
	list := make([]*surveyed, 0, len(found))
	for _, r := range found {
		list = append(list, r)
	}
	return list, nil
}

func errTooMany() error {
	return fmt.Errorf("counting: more than %d different resources: this is not the store of a Kubernetes cluster", maxResources)
}

// surveyor is one try to read one source.
type surveyor struct {
	selector *selector
	source   evidence.Source
	ledger   evidence.Ledger
	found    map[string]*surveyed
}

func (s *surveyor) add(page []evidence.Object) error {
	for i := range page {
		o := &page[i]
		object, ok := s.selector.of(o)
		if !ok || o.Deleted {
			if o.Corrects {
				s.ledger.Put(o, nil)
			}
			continue
		}
		r := s.found[object.Resource]
		if r == nil {
			r = &surveyed{Resource: Resource{Resource: object.Resource}}
			if s.found[object.Resource] = r; len(s.found) > maxResources {
				return errTooMany()
			}
		}
		count := &r.rest
		if object.found {
			count = &r.Found
		}
		s.ledger.Put(o, count)
		if object.broken == nil && object.addressable {
			r.sample(sample{object, s.source})
		}
	}
	for _, r := range s.found {
		r.Objects = r.Found + r.rest
	}
	return nil
}

// sample keeps those with the lowest keys: pages come in any order.
func (r *surveyed) sample(one sample) {
	i, again := slices.BinarySearchFunc(r.samples, one, func(a, b sample) int { return strings.Compare(a.Key, b.Key) })
	switch {
	case again:
		r.samples[i] = one // corrected
	case i < samplesKept:
		r.samples = slices.Insert(r.samples, i, one)
		r.samples = r.samples[:min(len(r.samples), samplesKept)]
	}
}

func (r *surveyed) merge(other *surveyed) {
	r.Objects += other.Objects
	r.Found += other.Found
	r.samples = append(r.samples, other.samples[:min(len(other.samples), samplesKept-len(r.samples))]...)
}
