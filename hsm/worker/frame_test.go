package worker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Frames are read as they were written, and nothing is left over.
func TestFrames(t *testing.T) {
	t.Parallel()
	var wire bytes.Buffer
	out := &request{header: header{3, 7, opFind}, Session: 5, Label: "ring", Limit: maxListed}
	if err := writeFrame(&wire, out); err != nil {
		t.Fatal(err)
	}
	var in request
	if err := readFrame(&wire, &in); err != nil || !reflect.DeepEqual(&in, out) || wire.Len() != 0 {
		t.Errorf("%+v, %v", in, err)
	}
	if err := writeFrame(&wire, &request{Label: strings.Repeat("x", frameLimit)}); !errors.Is(err, errProtocol) {
		t.Errorf("a message that is too long: %v", err)
	}
}

// The longest honest answer fits.
func TestLongestAnswerFits(t *testing.T) {
	t.Parallel()
	a := &answer{header: header{^uint64(0), ^uint64(0), opFind}}
	for range maxListed {
		a.Objects = append(a.Objects, p11.Object(^uint64(0)))
	}
	for range maxCalls {
		a.Calls = append(a.Calls, call{"C_FindObjectsFinal", ^p11.RV(0), 1 << 62})
	}
	if err := writeFrame(&bytes.Buffer{}, a); err != nil {
		t.Error(err)
	}
}

func TestFramesThatAreRefused(t *testing.T) {
	t.Parallel()
	frame := func(body string) []byte {
		return append(binary.NativeEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, wire := range map[string][]byte{
		"too long":              binary.NativeEndian.AppendUint32(nil, frameLimit+1),
		"cut short":             frame(`{"operation":"C_Initialize"}`)[:12],
		"no JSON":               frame("x"),
		"unknown field":         frame(`{"operation":"C_Initialize","x":1}`),
		"something behind":      frame(`{"operation":"C_Initialize"}{}`),
		"unknown operation":     frame(`{"operation":"C_Logout"}`),
		"nothing to load":       frame(`{"operation":"load"}`),
		"a login without a PIN": frame(`{"operation":"C_Login"}`),
		"too many":              frame(fmt.Sprintf(`{"operation":"C_FindObjects","limit":%d}`, maxListed+1)),
		"a negative limit":      frame(`{"operation":"C_FindObjects","limit":-1}`),
	} {
		if err := readFrame(bytes.NewReader(wire), &request{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, wire := range map[string][]byte{
		"an unknown kind":             frame(`{"operation":"C_Login","failed":{"text":"x","kind":99}}`),
		"a failure that says nothing": frame(`{"operation":"C_Login","failed":{}}`),
		"no token info":               frame(`{"operation":"C_GetTokenInfo"}`),
		"no session info":             frame(`{"operation":"C_GetSessionInfo"}`),
	} {
		if err := readFrame(bytes.NewReader(wire), &answer{}); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An error keeps its meaning on the way.
func TestErrorsOnTheWay(t *testing.T) {
	t.Parallel()
	if err := wrapError(nil).unwrap(); err != nil {
		t.Error(err)
	}
	is := wrapError(&p11.Error{Function: "C_Login", RV: pkcs11.CKR_PIN_INCORRECT}).unwrap()
	if rv, ok := p11.RVOf(is); !ok || rv != pkcs11.CKR_PIN_INCORRECT || is.Error() != "C_Login: CKR_PIN_INCORRECT" {
		t.Errorf("%v", is)
	}
	was := hint.Wrap(fmt.Errorf("reading PIN: %w: mode 0644", pinfile.ErrUnsafe), "chmod 0400")
	is = wrapError(was).unwrap()
	if !errors.Is(is, pinfile.ErrUnsafe) || errors.Is(is, pinfile.ErrAbsent) || is.Error() != was.Error() || hint.Of(is) != "chmod 0400" {
		t.Errorf("%v", is)
	}
	is = wrapError(fmt.Errorf("making a key: %w", pkcs11.Error(pkcs11.CKR_TEMPLATE_INCONSISTENT))).unwrap()
	var rv pkcs11.Error
	if !errors.As(is, &rv) || rv != pkcs11.CKR_TEMPLATE_INCONSISTENT {
		t.Errorf("%v", is)
	}
}

// FuzzRequest and FuzzAnswer: whatever comes is a message that keeps its bounds, or an error.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"sequence":1,"generation":2,"operation":"C_FindObjects","session":3,"label":"ring","limit":2}`))
	f.Add([]byte(`{"operation":"C_Login","pin":{"path":"/pin","device":1,"inode":2,"size":3,"ctime":4}}`))
	f.Add([]byte(`{"operation":"C_GenerateKey","secret":{"generic":true,"attributes":[{"Type":3,"Value":"AA=="}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var q request
		if err := decode(body, &q); err != nil {
			return
		}
		if q.Limit < 0 || q.Limit > maxListed || q.Operation == opLogin && q.PIN == nil || q.Operation == opLoad && q.Load == nil {
			t.Errorf("accepted: %+v", q)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"operation":"C_GetTokenInfo","token":{"Label":"azhz"},"calls":[{"function":"C_GetTokenInfo","took":3}]}`))
	f.Add([]byte(`{"operation":"C_Login","failed":{"function":"C_Login","rv":160}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var a answer
		if err := decode(body, &a); err != nil {
			return
		}
		if err := a.Failed.unwrap(); err != nil {
			_ = err.Error()
		} else if a.Operation == opTokenInfo {
			_ = a.Token.unwrap()
		}
		if len(a.Objects) > maxListed || len(a.Calls) > maxCalls {
			t.Error("accepted more than the bounds")
		}
	})
}

// An answer has its IV whole, or none.
func TestLaneAnswerWithIV(t *testing.T) {
	t.Parallel()
	q := &laneRequest{operation: laneOwnIV, sequence: 1, generation: 2, nonce: make([]byte, 12), in: []byte("in")}
	answer := func(rv uint64, out string) []byte {
		b := make([]byte, answerHeader, answerHeader+len(out))
		ne := binary.NativeEndian
		ne.PutUint32(b, uint32(answerHeader+len(out)))
		ne.PutUint32(b[4:], laneOwnIV)
		ne.PutUint64(b[8:], 1)
		ne.PutUint64(b[16:], 2)
		ne.PutUint64(b[40:], rv)
		ne.PutUint32(b[64:], 1)
		ne.PutUint32(b[68:], uint32(len(out)))
		return append(b, out...)
	}
	if a, err := decodeAnswer(answer(0, "twelve bytesout"), q); err != nil || string(a.iv) != "twelve bytes" || string(a.out) != "out" {
		t.Errorf("%q, %q, %v", a.iv, a.out, err)
	}
	if a, err := decodeAnswer(answer(5, ""), q); err != nil || len(a.iv)+len(a.out) != 0 {
		t.Errorf("a failure: %q, %q, %v", a.iv, a.out, err)
	}
	for _, bad := range [][]byte{answer(0, ""), answer(0, "eleven byte"), answer(5, "twelve bytes")} {
		if a, err := decodeAnswer(bad, q); !errors.Is(err, errProtocol) {
			t.Errorf("%q, %q, %v", a.iv, a.out, err)
		}
	}
}

// FuzzLaneAnswer: the bytes of a hostile worker are an answer to the request, within its bounds, or an error.
func FuzzLaneAnswer(f *testing.F) {
	q := &laneRequest{operation: laneHMAC, sequence: 1, generation: 2, in: []byte("in")}
	good := make([]byte, answerHeader+3)
	ne := binary.NativeEndian
	ne.PutUint32(good, uint32(len(good)))
	ne.PutUint32(good[4:], laneHMAC)
	ne.PutUint64(good[8:], 1)
	ne.PutUint64(good[16:], 2)
	ne.PutUint32(good[64:], 1)
	ne.PutUint32(good[68:], 3)
	f.Add(good, false)
	f.Add(make([]byte, answerHeader), false)
	withIV := append(bytes.Clone(good), make([]byte, 12)...)
	ne.PutUint32(withIV, uint32(len(withIV)))
	ne.PutUint32(withIV[4:], laneOwnIV)
	ne.PutUint32(withIV[68:], 15)
	f.Add(withIV, true)
	f.Fuzz(func(t *testing.T, wire []byte, ownIV bool) {
		if len(wire) < answerHeader {
			return
		}
		q := *q
		if ownIV {
			q.operation, q.nonce = laneOwnIV, make([]byte, 12)
		}
		size, err := answerSize(wire)
		if err != nil || size > len(wire) {
			return
		}
		a, err := decodeAnswer(wire[:size], &q)
		if err == nil && len(a.out)+len(a.iv) > len(q.in)+laneSlack {
			t.Errorf("an output of %d bytes", len(a.out))
		}
		if err == nil && len(a.iv) != 0 && len(a.iv) != len(q.nonce) {
			t.Errorf("an IV of %d bytes", len(a.iv))
		}
	})
}
