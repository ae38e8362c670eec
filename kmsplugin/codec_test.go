package kmsplugin

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// An answer that holds a DEK is zero as soon as gRPC gives its buffer back, and only then.
func TestCodecWipes(t *testing.T) {
	t.Parallel()
	for _, size := range []int{32, 1000, 5000} {
		dek := bytes.Repeat([]byte{0xd7}, size)
		answer := &kmsapi.DecryptResponse{Plaintext: bytes.Clone(dek)}
		held := answer.Plaintext
		encoded, err := newCodec().Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		wire := encoded[0].ReadOnlyData()
		var got kmsapi.DecryptResponse
		if err := proto.Unmarshal(wire, &got); err != nil || !bytes.Equal(got.Plaintext, dek) {
			t.Errorf("%d bytes: it was encoded as %x: %v", size, wire, err)
		}
		encoded.Ref()
		encoded.Free()
		if !bytes.Contains(wire, dek) {
			t.Errorf("%d bytes: wiped while somebody holds it", size)
		}
		encoded.Free()
		if bytes.Contains(wire, dek[:16]) || bytes.Contains(held, dek[:16]) {
			t.Errorf("%d bytes: a DEK is left in the answer", size)
		}
	}
}

// Bytes that gRPC hands over to be decoded are gRPC's: it may share them with anybody who has a reference, and forbids to
// change them. Nor does what we hand to gRPC change while somebody has a reference.
func TestCodecLeavesWhatIsGRPCs(t *testing.T) {
	t.Parallel()
	for _, size := range []int{32, 1000, 5000} {
		dek := bytes.Repeat([]byte{0xd7}, size)
		for _, message := range []proto.Message{
			&kmsapi.EncryptRequest{Plaintext: dek, Uid: "u"}, &kmsapi.DecryptRequest{Ciphertext: dek, Uid: "u"}, &kmsapi.StatusRequest{},
		} {
			wire, err := proto.Marshal(message)
			if err != nil {
				t.Fatal(err)
			}
			before := bytes.Clone(wire)
			half := len(wire) / 2
			for name, data := range map[string]mem.BufferSlice{
				"one frame":  {mem.SliceBuffer(wire)},
				"two frames": {mem.SliceBuffer(wire[:half]), mem.SliceBuffer(wire[half:])},
			} {
				decoded := message.ProtoReflect().New().Interface()
				if err := newCodec().Unmarshal(data, decoded); err != nil || !proto.Equal(decoded, message) {
					t.Errorf("%T of %d bytes, %s: decoded %v, %v", message, size, name, decoded, err)
				}
				if !bytes.Equal(wire, before) {
					t.Fatalf("%T of %d bytes, %s: gRPC's buffer was changed", message, size, name)
				}
				// Nor later, by way of memory that the message shares with the buffer.
				if request, ok := decoded.(*kmsapi.EncryptRequest); ok {
					clear(request.Plaintext)
				}
				if !bytes.Equal(wire, before) {
					t.Fatalf("%T of %d bytes, %s: the message shares gRPC's buffer", message, size, name)
				}
			}
		}
	}
}
