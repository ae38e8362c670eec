package live

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxParts bounds the fields of one message: the objects of a page, the events of an answer to a watch. A field of two
// bytes becomes a struct of more than a hundred, so the limit on bytes alone would let an answer take a gigabyte. etcd
// sends as many events at once as fit into 2 MiB.
const maxParts = 100_000

// codec is gRPC's own, which it hands only what has few enough parts.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	rest := buffer.ReadOnlyData()
	for parts := 0; len(rest) > 0; parts++ {
		if parts == maxParts {
			return fmt.Errorf("the message has more than %d parts", maxParts)
		}
		_, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return fmt.Errorf("decoding the message: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{buffer}, v)
}
