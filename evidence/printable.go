package evidence

import (
	"fmt"
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
