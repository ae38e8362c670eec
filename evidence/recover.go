package evidence

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
)

// ErrOtherProvider: the object is encrypted by something that the HSM has no part in.
var ErrOtherProvider = errors.New("not encrypted under a key of the HSM")

// Recovered is one object in plain text. The caller wipes Plain.
type Recovered struct {
	Object   Object
	Provider string // empty: it was plain text in etcd already
	KeyID    string
	Plain    []byte // as the API server serialised it
}

// Locate finds an object and says under which key it is, without asking the HSM, so that the caller can write down what
// it is about to do. Errors are the source's, or wrap stored.ErrUndecodable or ErrOtherProvider.
func Locate(ctx context.Context, source Source, key string) (*Recovered, *stored.Object, error) {
	o, err := source.Find(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	value, err := stored.Parse(o.Value)
	if err != nil {
		return nil, nil, fmt.Errorf("decoding %s: %w", Printable(key), err)
	}
	r := &Recovered{Object: o, Provider: value.Text(), KeyID: value.Object.KeyID}
	switch value.Provider {
	case stored.Plain:
		r.Plain = value.Rest
		return r, nil, nil
	case stored.KMSv2:
		return r, &value.Object, nil
	}
	return nil, nil, fmt.Errorf("%w: %s is under %s, whose key is in the EncryptionConfiguration or in another KMS", ErrOtherProvider, Printable(key), Printable(r.Provider))
}

// Recover decrypts what Locate found. It asks the HSM once.
func Recover(ctx context.Context, opener Opener, located *Recovered, object *stored.Object) error {
	if object == nil {
		return nil // plain text
	}
	dek, _, err := open(ctx, opener, object)
	if err != nil {
		return fmt.Errorf("opening the DEK of %s: %w", Printable(string(located.Object.Key)), err)
	}
	defer clear(dek)
	located.Plain, err = decrypt(dek, object, located.Object.Key)
	if err != nil {
		return fmt.Errorf("decrypting %s: %w", Printable(string(located.Object.Key)), err)
	}
	return nil
}
