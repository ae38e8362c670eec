package audit

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Record is one operation, as its caller knows it.
type Record struct {
	Time       time.Time     // when it began
	Operation  string        // "Encrypt", "Decrypt"; must not begin with "audit."
	RequestUID string        // the uid of the KMS request, which kube-apiserver also logs
	KeyID      string        // as answered, or as asked for
	Code       string        // gRPC code name, "OK" for success
	Duration   time.Duration // written in seconds
	Peer       Peer
	Object     string // the etcd key of the one object that a command recovered; else empty
	Reason     string // why a person did it, in their words, or why the outage hold did; else empty
	OnHold     bool   // the outage hold answered, and not the HSM
}

// Peer is the process that asked. pid and executable are best effort (SO_PEERCRED, /proc).
type Peer struct {
	PID        int32  // 0: unknown, as across pid namespaces
	UID        uint32 // as the kernel says
	Executable string // "": unknown
}

// Bounds of the strings in a record, in bytes. A peer chooses some of them, and every byte is written to
// disk before it is answered.
const (
	maxName   = 64  // operation, code
	maxUID    = 128 // kube-apiserver sends 36
	maxText   = 256 // key_id (our own are shorter), executable
	maxObject = 512 // etcd key, reason
)

// The chain's own records.
const (
	ownPrefix   = "audit."
	opStarted   = ownPrefix + "started"
	opEnded     = ownPrefix + "ended"
	opRotated   = ownPrefix + "rotated"
	opContinued = ownPrefix + "continued"
	opRecovered = ownPrefix + "recovered"
)

const timeFormat = "2006-01-02T15:04:05.000000Z"

// appendHead begins a record.
func appendHead(b []byte, at time.Time, sequence uint64, operation string) []byte {
	b = append(b, `{"time":"`...)
	b = at.UTC().AppendFormat(b, timeFormat)
	b = append(b, `","sequence":`...)
	b = strconv.AppendUint(b, sequence, 10)
	b = append(b, `,"operation":`...)
	return appendText(b, operation, maxName)
}

// appendRecord appends the record without its link to the chain.
func appendRecord(b []byte, sequence uint64, r *Record) []byte {
	b = appendHead(b, r.Time, sequence, r.Operation)
	b = append(b, `,"requestUID":`...)
	b = appendText(b, r.RequestUID, maxUID)
	b = append(b, `,"keyID":`...)
	b = appendText(b, r.KeyID, maxText)
	b = append(b, `,"code":`...)
	b = appendText(b, r.Code, maxName)
	b = append(b, `,"duration":`...)
	b = strconv.AppendFloat(b, r.Duration.Seconds(), 'f', 6, 64)
	b = append(b, `,"peer":{"pid":`...)
	b = strconv.AppendInt(b, int64(r.Peer.PID), 10)
	b = append(b, `,"uid":`...)
	b = strconv.AppendUint(b, uint64(r.Peer.UID), 10)
	b = append(b, `,"executable":`...)
	b = appendText(b, r.Peer.Executable, maxText)
	b = append(b, '}')
	if r.Object != "" {
		b = append(b, `,"object":`...)
		b = appendText(b, r.Object, maxObject)
	}
	if r.Reason != "" {
		b = append(b, `,"reason":`...)
		b = appendText(b, r.Reason, maxObject)
	}
	if r.OnHold {
		b = append(b, `,"onHold":true`...)
	}
	return b
}

// event is one of the chain's own records.
type event struct {
	operation string
	opens     bool
	cause     string
	lost      uint64
	torn      *span
}

// span says which bytes a recovery record covers.
type span struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// appendEvent appends e without its link to the chain.
func appendEvent(b []byte, at time.Time, sequence uint64, e *event) []byte {
	b = appendHead(b, at, sequence, e.operation)
	if e.opens {
		b = append(b, `,"opens":true`...)
	}
	if e.cause != "" {
		b = append(b, `,"cause":`...)
		b = appendText(b, e.cause, maxObject)
	}
	if e.lost > 0 {
		b = append(b, `,"lost":`...)
		b = strconv.AppendUint(b, e.lost, 10)
	}
	if e.torn != nil {
		b = append(b, `,"torn":{"bytes":`...)
		b = strconv.AppendInt(b, e.torn.Bytes, 10)
		b = append(b, `,"sha256":"`...)
		b = append(b, e.torn.SHA256...)
		b = append(b, `"}`...)
	}
	return b
}

// appendText appends text as a JSON string that is safe to print: control and format characters, which could
// move a terminal's cursor or turn its text round, do not get through.
func appendText(b []byte, text string, limit int) []byte {
	if len(text) <= limit && isPlain(text) {
		b = append(b, '"')
		b = append(b, text...)
		return append(b, '"')
	}
	text = strings.Map(func(r rune) rune {
		if r >= utf8.RuneSelf && !unicode.IsPrint(r) || r == 0x7f {
			return utf8.RuneError
		}
		return r // JSON escapes what is below 0x20
	}, truncate(text, limit))
	quoted, err := json.Marshal(text)
	if err != nil {
		return append(b, `""`...) // cannot be: every string has a JSON form
	}
	return append(b, quoted...)
}

// isPlain reports whether text is printable ASCII that needs no escape: what nearly every field is.
func isPlain(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// truncate cuts text to limit bytes at the boundary of a character, and says so.
func truncate(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	cut := limit
	for cut > limit-utf8.UTFMax && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return fmt.Sprintf("%s...(%d bytes)", text[:cut], len(text))
}
