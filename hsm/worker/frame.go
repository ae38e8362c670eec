package worker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// frameLimit bounds a message on the control socket, in bytes. The longest honest one lists the handles of 4,097 keys.
const frameLimit = 128 << 10

// maxListed bounds the slots and handles of one answer.
const maxListed = 4097

// maxCalls bounds the calls that one request makes: those of a search for 4,097 keys, and some more.
const maxCalls = 64

// errProtocol: the other side does not keep to the protocol. It is a fault of the program or an attack, and ends the worker.
var errProtocol = errors.New("the message is not one of the protocol")

// operation names a control request, by its PKCS#11 function where it has one: errors and logs show it.
type operation string

const (
	opLoad        operation = "load"
	opInitialize  operation = "C_Initialize"
	opSlots       operation = "C_GetSlotList"
	opTokenInfo   operation = "C_GetTokenInfo"
	opMechanism   operation = "C_GetMechanismInfo"
	opSessionInfo operation = "C_GetSessionInfo"
	opLookAtPIN   operation = "look at the PIN file"
	opLogin       operation = "C_Login"
	opFind        operation = "C_FindObjects"
	opAttributes  operation = "C_GetAttributeValue"
	opDestroy     operation = "C_DestroyObject"
	opFindData    operation = "C_FindObjects for data"
	opCreateData  operation = "C_CreateObject"
	opOpenMaker   operation = "log in to make keys"
	opMake        operation = "C_GenerateKey"
	opEnd         operation = "end"
)

// header is what an answer repeats of its request.
type header struct {
	Sequence   uint64    `json:"sequence"`
	Generation uint64    `json:"generation"`
	Operation  operation `json:"operation"`
}

// request is a message to the worker. Fields that the operation does not name are zero.
type request struct {
	header
	Load       *loading          `json:"load,omitempty"`
	Slot       uint              `json:"slot,omitempty"`
	Mechanism  uint              `json:"mechanism,omitempty"`
	Session    p11.Session       `json:"session,omitempty"`
	Object     p11.Object        `json:"object,omitempty"`
	Label      string            `json:"label,omitempty"`
	Owner      string            `json:"owner,omitempty"` // CKA_APPLICATION
	Value      []byte            `json:"value,omitempty"`
	Limit      int               `json:"limit,omitempty"`
	Attributes []uint            `json:"attributes,omitempty"`
	PIN        *pinfile.Identity `json:"pin,omitempty"`
	Key        []byte            `json:"key,omitempty"` // of the PIN's tag
	Secret     *Secret           `json:"secret,omitempty"`
}

// loading is the first request: what the worker is to load, and for whom.
type loading struct {
	Build          string        `json:"build"`
	Module         string        `json:"module"`
	Reserved       string        `json:"reserved"`
	ConnectTimeout time.Duration `json:"connectTimeout"`
}

// answer is a message from the worker.
type answer struct {
	header
	Calls     []call                `json:"calls,omitempty"`
	Failed    *failure              `json:"failed,omitempty"`
	Slots     []uint                `json:"slots,omitempty"`
	Token     *tokenInfo            `json:"token,omitempty"`
	Mechanism *pkcs11.MechanismInfo `json:"mechanism,omitempty"`
	Session   *pkcs11.SessionInfo   `json:"session,omitempty"`
	Objects   []p11.Object          `json:"objects,omitempty"`
	Values    map[uint][]byte       `json:"values,omitempty"`
	PIN       *pinfile.Look         `json:"pin,omitempty"`
}

// call is one PKCS#11 call that the request came to.
type call struct {
	Function string        `json:"function"`
	RV       p11.RV        `json:"rv"`
	Took     time.Duration `json:"took"`
}

// tokenInfo is pkcs11.TokenInfo as JSON can carry it: its text is whatever bytes the token has.
type tokenInfo struct {
	Label, Manufacturer, Model, Serial []byte
	Rest                               pkcs11.TokenInfo
}

func wrapTokenInfo(i pkcs11.TokenInfo) *tokenInfo {
	w := &tokenInfo{[]byte(i.Label), []byte(i.ManufacturerID), []byte(i.Model), []byte(i.SerialNumber), i}
	w.Rest.Label, w.Rest.ManufacturerID, w.Rest.Model, w.Rest.SerialNumber, w.Rest.UTCTime = "", "", "", "", ""
	return w
}

func (w *tokenInfo) unwrap() pkcs11.TokenInfo {
	i := w.Rest
	i.Label, i.ManufacturerID, i.Model, i.SerialNumber = string(w.Label), string(w.Manufacturer), string(w.Model), string(w.Serial)
	return i
}

// failure is an error in a message: a *p11.Error, or a text with its hint and the sentinel or the pkcs11.Error (RV) that
// it wraps.
type failure struct {
	Function string `json:"function,omitempty"`
	RV       p11.RV `json:"rv,omitempty"`
	Text     string `json:"text,omitempty"`
	Kind     int    `json:"kind,omitempty"` // index in kinds, from 1; 0: none
	Hint     string `json:"hint,omitempty"`
}

// kinds are the sentinels that survive the way between the processes.
var kinds = append(pinfile.Errors(), ErrLoad, ErrBuild)

func wrapError(err error) *failure {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*p11.Error](err); ok && error(e) == err {
		return &failure{Function: e.Function, RV: e.RV}
	}
	f := &failure{Text: err.Error(), Hint: hint.Of(err)}
	var rv pkcs11.Error // crypto11's
	if errors.As(err, &rv) {
		f.RV = p11.RV(rv)
	}
	for i, kind := range kinds {
		if errors.Is(err, kind) {
			f.Kind = i + 1
		}
	}
	return f
}

func (f *failure) unwrap() error {
	switch {
	case f == nil:
		return nil
	case f.Text == "":
		return &p11.Error{Function: f.Function, RV: f.RV}
	}
	err := &remoteError{text: f.Text}
	switch {
	case f.Kind > 0:
		err.kind = kinds[f.Kind-1]
	case f.RV != 0:
		err.kind = pkcs11.Error(f.RV)
	}
	if f.Hint == "" {
		return err
	}
	return hint.Wrap(err, f.Hint)
}

// remoteError is an error of the other process.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// writeFrame sends a message.
func writeFrame(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if len(body) > frameLimit {
		return fmt.Errorf("%w: it has %d bytes", errProtocol, len(body))
	}
	_, err = w.Write(append(binary.NativeEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// readFrame receives one; io.EOF: the other side has closed.
func readFrame(r io.Reader, message any) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	n := binary.NativeEndian.Uint32(length[:])
	if n > frameLimit {
		return fmt.Errorf("%w: it has %d bytes", errProtocol, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return decode(body, message)
}

// decode understands a whole message and nothing else.
func decode(body []byte, message any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(message); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows it", errProtocol)
	}
	switch m := message.(type) {
	case *request:
		return m.check()
	case *answer:
		return m.check()
	}
	return nil
}

// check reports whether the request has what its operation needs.
func (q *request) check() error {
	ok := len(q.Attributes) <= 64 && q.Limit >= 0 && q.Limit <= maxListed
	switch q.Operation {
	case opLoad:
		ok = ok && q.Load != nil && q.Load.ConnectTimeout > 0
	case opLookAtPIN:
		ok = ok && q.PIN != nil && len(q.Key) > 0
	case opLogin:
		ok = ok && q.PIN != nil
	case opMake:
		ok = ok && q.Secret != nil && len(q.Secret.Attributes) <= 64
	case opAttributes:
		ok = ok && len(q.Attributes) > 0
	case opInitialize, opSlots, opTokenInfo, opMechanism, opSessionInfo, opFind, opFindData, opCreateData, opDestroy, opOpenMaker, opEnd:
	default:
		ok = false
	}
	if !ok {
		return fmt.Errorf("%w: a request for %q", errProtocol, q.Operation)
	}
	return nil
}

// check reports whether the answer has what its operation promises when it did not fail.
func (a *answer) check() error {
	ok := len(a.Calls) <= maxCalls && len(a.Slots) <= maxListed && len(a.Objects) <= maxListed
	if f := a.Failed; f != nil {
		ok = ok && f.Kind >= 0 && f.Kind <= len(kinds) && (f.Text != "" || f.RV != 0)
	} else {
		switch a.Operation {
		case opTokenInfo:
			ok = ok && a.Token != nil
		case opMechanism:
			ok = ok && a.Mechanism != nil
		case opSessionInfo:
			ok = ok && a.Session != nil
		case opLookAtPIN:
			ok = ok && a.PIN != nil
		}
	}
	if !ok {
		return fmt.Errorf("%w: an answer to %q", errProtocol, a.Operation)
	}
	return nil
}
