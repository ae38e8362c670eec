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
	known    *stored.Resources
	entries  []string // as in an EncryptionConfiguration
	required string
	wanted   map[string]bool // by resource
}

func newSelector(opts *Options) *selector {
	return &selector{known: opts.Known, entries: opts.Resources, required: opts.RequiredKey, wanted: map[string]bool{}}
}

// selected is an object of etcd that the work is about.
type selected struct {
	Object
	Key         string
	Revision    int64
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

// meets tells what evidence.Report.RequireKey asks of every object.
func (u under) meets(required string) bool { return u.keyID == required && required != "" }

// text is the provider in words, and full with the key_id.
func (u under) text() string { return cmp.Or(u.provider, "plain text") }

func (u under) full() string { return strings.TrimSpace(u.text() + " " + u.keyID) }

// of returns ok false for an object of another resource.
func (s *selector) of(o *evidence.Object) (object selected, ok bool) {
	place := s.known.Of(o.Key, o.Path)
	if !s.wants(place.Resource) {
		return selected{}, false
	}
	u, err := underOf(o.Value)
	return selected{
		Object: Object{place.Resource, place.Namespace, place.Name}, Key: string(o.Key), Revision: o.Revision, addressable: place.Known && place.Name != "",
		broken: err, under: u, found: err != nil || !u.meets(s.required),
	}, true
}

// wants reports whether a resource was asked for.
func (s *selector) wants(resource string) bool {
	wanted, seen := s.wanted[resource]
	if !seen {
		wanted = slices.ContainsFunc(s.entries, func(entry string) bool { return stored.Matches(entry, resource) })
		if len(s.wanted) < maxResources {
			s.wanted[resource] = wanted
		}
	}
	return wanted
}

// surveyed is what is known of one resource.
type surveyed struct {
	Resource
	samples []sample
}

// sample is an object that can show what an API server writes.
type sample struct {
	selected
	source evidence.Source
}

// survey counts what there is and what is to be done, and keeps a few objects of each resource.
func survey(ctx context.Context, opts *Options) ([]*surveyed, error) {
	found := map[string]*surveyed{}
	s := newSelector(opts)
	for _, source := range opts.Sources {
		_, err := source.Read(ctx, func(page []evidence.Object) error {
			for i := range page {
				object, ok := s.of(&page[i])
				if !ok {
					continue
				}
				r := found[object.Resource]
				if r == nil {
					r = &surveyed{Resource: Resource{Resource: object.Resource}}
					if found[object.Resource] = r; len(found) > maxResources {
						return fmt.Errorf("counting: more than %d different resources: this is not the store of a Kubernetes cluster", maxResources)
					}
				}
				r.add(object, source)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	list := make([]*surveyed, 0, len(found))
	for _, r := range found {
		list = append(list, r)
	}
	return list, nil
}

func (r *surveyed) add(object selected, source evidence.Source) {
	r.Objects++
	if object.found {
		r.Found++
	}
	if object.broken == nil && object.addressable && len(r.samples) < samplesKept {
		r.samples = append(r.samples, sample{object, source})
	}
}
