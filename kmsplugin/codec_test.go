package kmsplugin

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// What holds a DEK is zero as soon as gRPC has done with it, and only then.
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

		request, err := proto.Marshal(&kmsapi.EncryptRequest{Plaintext: dek, Uid: "u"})
		if err != nil {
			t.Fatal(err)
		}
		neighbour := append(request, "next message"...)
		var decoded kmsapi.EncryptRequest
		err = newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(neighbour[:len(request)])}, &decoded)
		if err != nil || !bytes.Equal(decoded.Plaintext, dek) || decoded.Uid != "u" {
			t.Errorf("%d bytes: decoded %v, %v", size, &decoded, err)
		}
		if bytes.Contains(neighbour, dek[:16]) || !bytes.HasSuffix(neighbour, []byte("next message")) {
			t.Errorf("%d bytes: what is left of the request: %x", size, neighbour)
		}
	}
}
