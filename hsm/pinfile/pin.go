package pinfile

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// PIN is a token's user PIN. Every way of printing it gives "[redacted]": fmt with any verb, slog, JSON and YAML. The
// bytes sit behind a function because fmt calls no methods on unexported fields, and would print the bytes of a PIN in
// such a field, behind a pointer too; of a function it prints an address. The zero PIN is empty. Wipe is not
// safe beside a concurrent use of Bytes.
type PIN struct {
	secret func() []byte
}

func newPIN(b []byte) *PIN { return &PIN{secret: func() []byte { return b }} }

// Bytes returns the PIN itself, for C_Login. It is not a copy: after Wipe it is all zeros.
func (p *PIN) Bytes() []byte {
	if p == nil || p.secret == nil {
		return nil
	}
	return p.secret()
}

// Wipe overwrites the PIN with zeros. Copies that the Go runtime, C_Login or the module made are not reached. It may
// be called on nil and more than once.
func (p *PIN) Wipe() {
	b := p.Bytes()
	clear(b[:cap(b)])
}

// String is redacted.
func (PIN) String() string { return redacted }

// Format is redacted for every verb, so that %x and %#v give nothing away either.
func (PIN) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// LogValue is redacted.
func (PIN) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText is redacted; encoding/json and YAML use it.
func (PIN) MarshalText() ([]byte, error) { return []byte(redacted), nil }
