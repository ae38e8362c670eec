package evidence

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPrinted bounds how much of a text from etcd is printed, in bytes: the longest key_id of the API server.
const maxPrinted = 1024

// Printable makes text that came from etcd safe for a terminal or a log: control and format characters, which could
// move the cursor, recolour or turn the text round, and bytes that are not UTF-8 become escapes such as \x1b; a
// backslash is doubled, so that what is shown is unambiguous. Ours are unchanged: key_ids and object names have none.
func Printable(text string) string {
	if len(text) <= maxPrinted && isPlain(text) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		if b.Len() > maxPrinted {
			fmt.Fprintf(&b, `...(%d bytes)`, len(text))
			break
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1, r < utf8.RuneSelf && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		case r == '\\':
			b.WriteString(`\\`)
		default:
			b.WriteRune(r)
		}
		i += size
	}
	return b.String()
}

// isPlain reports whether text is printable ASCII without a backslash.
func isPlain(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < 0x20 || c > 0x7e || c == '\\' {
			return false
		}
	}
	return true
}

// rpcError is how gRPC begins the text of its errors.
var rpcError = regexp.MustCompile(`rpc error: code = (\w+) desc = `)

// InWords replaces the codes of gRPC in the text of an error by words: people meet them when etcd or a plugin does not answer.
func InWords(text string) string {
	return rpcError.ReplaceAllStringFunc(text, func(found string) string {
		code := rpcError.FindStringSubmatch(found)[1]
		words := map[string]string{
			"Unavailable": "nobody answers, or not now", "DeadlineExceeded": "no answer in time", "Canceled": "stopped", "PermissionDenied": "not permitted",
			"Unauthenticated": "not authenticated", "ResourceExhausted": "too much at one time", "Unimplemented": "not known there",
		}[code]
		return cmp.Or(words, code) + ": "
	})
}
