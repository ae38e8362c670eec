package kmsplugin

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// wipingCodec is gRPC's protobuf codec, which wipes what holds a DEK once it is no longer needed: the plaintext of a Decrypt
// answer when it is encoded, the encoded answer when gRPC has sent it, and an Encrypt request when it is decoded. gRPC's
// buffer for writing to the socket, and a request that came in several frames, are out of reach.
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

// Unmarshal decodes into v, which shares no memory with data. Nobody reads data afterwards: there are no interceptors of
// encoded messages here. Only the bytes of this message are in it.
func (c wipingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	if _, ok := v.(*kmsapi.EncryptRequest); ok {
		for _, buffer := range data {
			clear(buffer.ReadOnlyData())
		}
	}
	return err
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
