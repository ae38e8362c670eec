package stored

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// SourceType says what the decrypted DEK source is (enum EncryptedDEKSourceType).
type SourceType int32

const (
	// Key: it is the key of AES-GCM itself.
	Key SourceType = 0
	// Seed: HKDF-SHA-256 over it and the first 32 bytes of Data gives the key (extended nonce AES-GCM).
	Seed SourceType = 1
)

// Limits of kube-apiserver, in bytes (k8s.io/apiserver, envelope/kmsv2).
const (
	maxDEKSource   = 1024
	maxKeyID       = 1024
	maxAnnotations = 32 * 1024
)

// Object is the EncryptedObject of k8s.io/apiserver v0.37.2, pkg/storage/value/encrypt/envelope/kmsv2/v2/api.proto.
type Object struct {
	Data        []byte            // 1: what the DEK encrypts; the associated data is the etcd key
	KeyID       string            // 2
	DEKSource   []byte            // 3: the encrypted DEK or seed
	Annotations map[string][]byte // 4: nil for none; hsm-kms writes none
	Type        SourceType        // 5
}

// DEK identifies the DEK of an object, as the API server's own cache does: by what it would send to the plugin.
type DEK [16]byte

// DEK returns the identity of the object's DEK: the beginning of a hash over key_id, source, type and annotations.
func (o *Object) DEK() DEK {
	b := make([]byte, 0, 256)
	b = append(b, byte(o.Type))
	field := func(bytes []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(bytes))) //nolint:gosec // at most 32 kB each
		b = append(b, bytes...)
	}
	field(o.DEKSource)
	b = binary.BigEndian.AppendUint32(b, uint32(len(o.KeyID))) //nolint:gosec // at most 1 kB
	b = append(b, o.KeyID...)
	for _, name := range sortedNames(o.Annotations) {
		field([]byte(name))
		field(o.Annotations[name])
	}
	sum := sha256.Sum256(b)
	return DEK(sum[:])
}

// ParseObject decodes an EncryptedObject and applies the checks of the API server's ValidateEncryptedObject: what
// passes here, and nothing else, can the API server hand to its plugin. As in every protobuf, unknown fields are
// passed over and the last of a repeated field counts. The error wraps ErrUndecodable.
func ParseObject(b []byte) (Object, error) {
	var o Object
	if err := o.fields(b); err != nil {
		return Object{}, fmt.Errorf("%w: EncryptedObject: %w", ErrUndecodable, err)
	}
	if err := o.validate(); err != nil {
		return Object{}, fmt.Errorf("%w: EncryptedObject: %w", ErrUndecodable, err)
	}
	return o, nil
}

func (o *Object) fields(b []byte) error {
	return eachField(b, func(number protowire.Number, kind protowire.Type, bytes []byte, varint uint64) error {
		switch {
		case number == 1 && kind == protowire.BytesType:
			o.Data = bytes
		case number == 2 && kind == protowire.BytesType:
			if !utf8.Valid(bytes) {
				return fmt.Errorf("the key_id is not UTF-8")
			}
			o.KeyID = string(bytes)
		case number == 3 && kind == protowire.BytesType:
			o.DEKSource = bytes
		case number == 4 && kind == protowire.BytesType:
			return o.annotation(bytes)
		case number == 5 && kind == protowire.VarintType:
			o.Type = SourceType(int32(varint)) //nolint:gosec // protobuf cuts an enum to 32 bits in the same way
		}
		return nil
	})
}

// annotation adds one entry of the map.
func (o *Object) annotation(b []byte) error {
	var name string
	var value []byte
	err := eachField(b, func(number protowire.Number, kind protowire.Type, bytes []byte, _ uint64) error {
		switch {
		case number == 1 && kind == protowire.BytesType:
			if !utf8.Valid(bytes) {
				return fmt.Errorf("an annotation's name is not UTF-8")
			}
			name = string(bytes)
		case number == 2 && kind == protowire.BytesType:
			value = bytes
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("annotation: %w", err)
	}
	if o.Annotations == nil {
		o.Annotations = map[string][]byte{}
	}
	o.Annotations[name] = value
	return nil
}

// eachField goes through the fields of a message. bytes is set for fields of that type, varint for the others' values
// where they are varints.
func eachField(b []byte, field func(number protowire.Number, kind protowire.Type, bytes []byte, varint uint64) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("reading a field: %w", protowire.ParseError(n))
		}
		b = b[n:]
		var bytes []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			varint, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("reading field %d: %w", number, protowire.ParseError(n))
		}
		b = b[n:]
		if err := field(number, kind, bytes, varint); err != nil {
			return err
		}
	}
	return nil
}
