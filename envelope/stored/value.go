package stored

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrUndecodable: the value begins as an encrypted one and is not one that the API server could read.
var ErrUndecodable = errors.New("not a value of kube-apiserver")

// encrypted begins every value that kube-apiserver has encrypted.
const encrypted = "k8s:enc:"

// IsEncrypted reports whether an API server has encrypted the value, by whichever provider.
func IsEncrypted(value []byte) bool { return bytes.HasPrefix(value, []byte(encrypted)) }

// Provider is a kind of encryption as it stands in the value's prefix.
type Provider string

// The providers of an EncryptionConfiguration. Plain is identity.
const (
	Plain     Provider = ""
	KMSv2     Provider = "kms:v2"
	KMSv1     Provider = "kms:v1"
	AESCBC    Provider = "aescbc:v1"
	AESGCM    Provider = "aesgcm:v1"
	Secretbox Provider = "secretbox:v1"
)

// providers are those that have a prefix.
var providers = [...]Provider{KMSv2, AESCBC, AESGCM, Secretbox, KMSv1}

// Value is one value of etcd, decoded as far as its envelope. Its slices share the value's memory.
type Value struct {
	Provider Provider
	Name     string // of the KMS provider, or of the key in the EncryptionConfiguration; empty: plain text
	Object   Object // KMSv2; of KMSv1 only DEKSource and Data are known
	Rest     []byte // what follows the prefix; of plain text the whole value
}

// Text is the provider as reports name it: what stands between k8s:enc: and the last colon of the prefix, such as
// kms:v2:hsm-kms. Empty: plain text.
func (v *Value) Text() string {
	if v.Provider == Plain {
		return ""
	}
	return string(v.Provider) + ":" + v.Name
}

// Parse decodes a value. The error wraps ErrUndecodable.
func Parse(value []byte) (Value, error) {
	rest, found := bytes.CutPrefix(value, []byte(encrypted))
	if !found {
		return Value{Rest: value}, nil
	}
	for _, provider := range providers {
		after, found := bytes.CutPrefix(rest, []byte(provider))
		if !found || len(after) == 0 || after[0] != ':' {
			continue
		}
		return parseNamed(provider, after[1:])
	}
	return Value{}, fmt.Errorf("%w: no known provider follows %s", ErrUndecodable, encrypted)
}

func parseNamed(provider Provider, rest []byte) (Value, error) {
	name, rest, found := bytes.Cut(rest, []byte{':'})
	switch {
	case !found:
		return Value{}, fmt.Errorf("%w: it ends inside the prefix of %s", ErrUndecodable, provider)
	case len(name) == 0:
		return Value{}, fmt.Errorf("%w: the prefix of %s names no provider or key", ErrUndecodable, provider)
	}
	v := Value{Provider: provider, Name: string(name), Rest: rest}
	var err error
	switch provider {
	case KMSv2:
		v.Object, err = ParseObject(rest)
	case KMSv1:
		v.Object, err = parseV1(rest)
	default:
		if len(rest) == 0 {
			err = fmt.Errorf("%w: nothing follows the prefix of %s", ErrUndecodable, provider)
		}
	}
	return v, err
}

// parseV1 splits what KMS v1 stores (envelope.envelopeTransformer.TransformFromStorage).
func parseV1(b []byte) (Object, error) {
	if len(b) < 2 {
		return Object{}, fmt.Errorf("%w: it ends inside the length of the encrypted DEK", ErrUndecodable)
	}
	length := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if length > len(b) {
		return Object{}, fmt.Errorf("%w: an encrypted DEK of %d bytes is announced, %d bytes follow", ErrUndecodable, length, len(b))
	}
	return Object{DEKSource: b[:length], Data: b[length:]}, nil
}
