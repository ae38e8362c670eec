package kmsplugin

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	kmsapi "k8s.io/kms/apis/v2"
)

// wipingCodec is gRPC's protobuf codec, which wipes the plaintext of a Decrypt answer once it is encoded. That is the
// last that we see of it: gRPC encodes an answer once, into buffers of its own, which nobody can wipe.
type wipingCodec struct{ encoding.CodecV2 }

func newCodec() encoding.CodecV2 { return wipingCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal encodes v. A DecryptResponse has no plaintext left after it.
func (c wipingCodec) Marshal(v any) (mem.BufferSlice, error) {
	encoded, err := c.CodecV2.Marshal(v)
	if answer, ok := v.(*kmsapi.DecryptResponse); ok {
		clear(answer.Plaintext)
	}
	return encoded, err
}
