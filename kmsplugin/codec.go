package kmsplugin

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// wipingCodec is gRPC's protobuf codec, which wipes the plaintext of a Decrypt answer when it is encoded, and the encoded
// answer when gRPC gives its buffer back. Both are ours. The encoded Encrypt request is gRPC's, which forbids to change it
// (mem.Buffer): it stays in freed memory until the Go runtime uses that again. So do gRPC's buffers for the socket.
type wipingCodec struct{ encoding.CodecV2 }

func newCodec() encoding.CodecV2 { return wipingCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal encodes v. A DecryptResponse has no plaintext left after it.
func (c wipingCodec) Marshal(v any) (mem.BufferSlice, error) {
	answer, ok := v.(*kmsapi.DecryptResponse)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	defer clear(answer.Plaintext)
	// All room at once: an append that moved would leave a copy behind.
	encoded, err := protobuf.MarshalOptions{}.MarshalAppend(make([]byte, 0, max(protobuf.Size(answer), pooledSize)), answer)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(&encoded, wiper{})}, nil
}

// pooledSize is more than the size up to which package mem gives no buffer back to its pool, but leaves it to the collector.
const pooledSize = 2 << 10

// wiper is a mem.BufferPool that keeps nothing: what is given back is wiped.
type wiper struct{}

// Get returns a new buffer.
func (wiper) Get(length int) *[]byte {
	b := make([]byte, length)
	return &b
}

// Put wipes b.
func (wiper) Put(b *[]byte) { clear((*b)[:cap(*b)]) }
