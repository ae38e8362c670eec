package evidence

import (
	"context"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// WrappedDEK is a DEK as an API server presents it to its plugin.
type WrappedDEK struct {
	KeyID  string
	Source []byte
}

// WrappedDEKs are the distinct DEKs of objects. Those of objects that were changed while etcd was read may be among them.
type WrappedDEKs struct {
	DEKs    []WrappedDEK // in the order in which they were found
	Sources []Reading
}

// Wrapped reads the sources whole, and returns the wrapped DEKs of all objects whose key_id is wanted, at most limit of them:
// more are an error. No HSM is asked. Other errors are those of ReadWhole. Older revisions in a snapshot are passed over, and
// what cannot be decoded, which no API server can read either.
func Wrapped(ctx context.Context, sources []Source, wanted func(keyID string) bool, limit int) (*WrappedDEKs, error) {
	all := &WrappedDEKs{DEKs: []WrappedDEK{}}
	seen := map[stored.DEK]bool{}
	for _, source := range sources {
		reading, err := ReadWhole(ctx, source, func(bool) func([]Object) error {
			return func(page []Object) error {
				for i := range page {
					all.add(seen, &page[i], wanted)
				}
				if len(all.DEKs) > limit {
					return hint.Wrap(fmt.Errorf("the objects have more than %d distinct DEKs", limit),
						"run hsm-kms etcd migrate: each API server then writes all of them with one DEK")
				}
				return nil
			}
		})
		if err != nil {
			return nil, err
		}
		all.Sources = append(all.Sources, reading)
	}
	return all, nil
}

// add takes the DEK of an object if it is wanted and was not seen before.
func (w *WrappedDEKs) add(seen map[stored.DEK]bool, o *Object, wanted func(string) bool) {
	if o.Past || o.Deleted {
		return
	}
	value, err := stored.Parse(o.Value)
	if err != nil || value.Provider != stored.KMSv2 || !wanted(value.Object.KeyID) {
		return
	}
	// Type and annotations are no part of what the plugin opens.
	dek := stored.Object{KeyID: value.Object.KeyID, DEKSource: value.Object.DEKSource}
	if id := dek.DEK(); !seen[id] {
		seen[id] = true
		w.DEKs = append(w.DEKs, WrappedDEK{dek.KeyID, append([]byte{}, dek.DEKSource...)})
	}
}
