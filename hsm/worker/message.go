package worker

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// The layout of p11/lane.h, which says what each field means.
const (
	laneMessage    = 8192
	requestHeader  = 56
	answerHeader   = 72
	laneSlack      = 80
	laneOpen       = 1
	laneClose      = 2
	laneEncryptGCM = 3
	laneDecryptGCM = 4
	laneHMAC       = 5
	laneOwnIV      = 6
	laneECB        = 7
)

// laneRequest is a message to a lane.
type laneRequest struct {
	operation             uint32
	sequence, generation  uint64
	object, flags         uint64
	nonce, associated, in []byte
}

// encode writes the request to buf, which has room for any whose arguments p11.CheckSizes accepts.
func (q *laneRequest) encode(buf *[laneMessage]byte) []byte {
	b := binary.NativeEndian.AppendUint32(buf[:0], uint32(requestHeader+len(q.nonce)+len(q.associated)+len(q.in)))
	b = binary.NativeEndian.AppendUint32(b, q.operation)
	b = binary.NativeEndian.AppendUint64(b, q.sequence)
	b = binary.NativeEndian.AppendUint64(b, q.generation)
	b = binary.NativeEndian.AppendUint64(b, q.object)
	b = binary.NativeEndian.AppendUint64(b, q.flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(q.nonce)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(q.associated)))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(q.in)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, q.nonce...)
	b = append(b, q.associated...)
	return append(b, q.in...)
}

// laneAnswer is a message from a lane; iv and out are in the buffer that it was decoded from.
type laneAnswer struct {
	session    uint64
	iv         []byte // of laneOwnIV, before out in the buffer
	initRV, rv p11.RV
	init, took time.Duration
	second     bool
	out        []byte
}

// answerSize is the length of the message that begins with b, which has a whole header.
func answerSize(b []byte) (int, error) {
	size := binary.NativeEndian.Uint32(b)
	if size < answerHeader || size > laneMessage {
		return 0, fmt.Errorf("%w: an answer of %d bytes", errProtocol, size)
	}
	return int(size), nil
}

// decodeAnswer understands the whole message b, which must be the answer to q.
func decodeAnswer(b []byte, q *laneRequest) (laneAnswer, error) {
	ne := binary.NativeEndian
	var a laneAnswer
	if ne.Uint32(b[4:]) != q.operation || ne.Uint64(b[8:]) != q.sequence || ne.Uint64(b[16:]) != q.generation {
		return a, fmt.Errorf("%w: an answer to another request", errProtocol)
	}
	a.session, a.initRV, a.rv = ne.Uint64(b[24:]), p11.RV(ne.Uint64(b[32:])), p11.RV(ne.Uint64(b[40:]))
	a.init, a.took = time.Duration(ne.Uint64(b[48:])), time.Duration(ne.Uint64(b[56:]))
	second, length := ne.Uint32(b[64:]), ne.Uint32(b[68:])
	if second > 1 || answerHeader+int(length) != len(b) || int(length) > len(q.in)+laneSlack {
		return a, fmt.Errorf("%w: an output of %d bytes", errProtocol, length)
	}
	iv := 0
	if done := second == 1 && a.initRV == 0 && a.rv == 0; q.operation == laneOwnIV && done {
		iv = len(q.nonce)
	}
	if int(length) < iv {
		return a, fmt.Errorf("%w: an output of %d bytes, without the IV", errProtocol, length)
	}
	if length > 0 && (second == 0 || a.initRV != 0 || a.rv != 0) {
		return a, fmt.Errorf("%w: an output of a call that failed", errProtocol)
	}
	a.second, a.iv, a.out = second == 1, b[answerHeader:answerHeader+iv], b[answerHeader+iv:]
	return a, nil
}
