package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// A pkcs11: URI (RFC 7512) says which token it is, and which module to load for it:
//
//	pkcs11:token=k8s;serial=2f1a?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// Only attributes that say that are accepted. What names an object, a PIN or a command is refused, and its value is not
// repeated: it may be a secret.

// maxURI bounds a URI, in bytes.
const maxURI = 2048

// tokenURI is what a URI says. Texts that it does not have are empty.
type tokenURI struct {
	token, serial, manufacturer, model string
	slot                               *uint
	module                             string
}

// parseURI understands a URI; errors have a hint, and never a value of the URI.
func parseURI(text string) (tokenURI, error) {
	var u tokenURI
	rest, found := strings.CutPrefix(text, "pkcs11:")
	switch {
	case len(text) > maxURI:
		return u, hint.Wrap(fmt.Errorf("has %d bytes, more than %d", len(text), maxURI), "leave out what does not identify the token")
	case !found:
		return u, hint.Wrap(errors.New("is not a URI of the scheme pkcs11"), "write it as pkcs11:token=LABEL?module-path=/PATH")
	}
	path, query, _ := strings.Cut(rest, "?")
	seen := map[string]bool{}
	if err := eachAttribute(path, ";", seen, u.setPath); err != nil {
		return tokenURI{}, err
	}
	if err := eachAttribute(query, "&", seen, u.setQuery); err != nil {
		return tokenURI{}, err
	}
	switch {
	case u.token == "" && u.serial == "" && u.slot == nil:
		return tokenURI{}, hint.Wrap(errors.New("has none of token, serial and slot-id, so it does not identify the token"), "add token= with the token's label; p11tool --list-token-urls shows it")
	case !filepath.IsAbs(u.module):
		return tokenURI{}, hint.Wrap(errors.New("has no module-path that is absolute"), "add ?module-path=/PATH of the vendor's PKCS#11 library at its end")
	}
	return u, nil
}

// eachAttribute calls set for each attribute of a component, with its value decoded.
func eachAttribute(component, separator string, seen map[string]bool, set func(name, value string) error) error {
	if component == "" {
		return nil
	}
	for _, pair := range strings.Split(component, separator) {
		name, raw, found := strings.Cut(pair, "=")
		if !found || !attributeName(name) {
			return hint.Wrap(errors.New("has a part that is no attribute=value"), "write an attribute as token=k8s; a ; or & in a value is %3B or %26")
		}
		if seen[name] {
			return hint.Wrap(fmt.Errorf("has the attribute %s twice", name), "keep one")
		}
		seen[name] = true
		value, err := url.PathUnescape(raw)
		if err != nil || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
			return hint.Wrap(fmt.Errorf("has an attribute %s that cannot be decoded", name), "write bytes that are not letters or digits as %20, two hex digits each")
		}
		if err := set(name, value); err != nil {
			return err
		}
	}
	return nil
}

// attributeName reports whether name is made of what RFC 7512 allows in a name, so that an error may repeat it.
func attributeName(name string) bool {
	return name != "" && len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

func (u *tokenURI) setPath(name, value string) error {
	switch name {
	case "token":
		return setText(&u.token, name, value, labelSize)
	case "serial":
		return setText(&u.serial, name, value, serialSize)
	case "manufacturer":
		return setText(&u.manufacturer, name, value, manufacturerSize)
	case "model":
		return setText(&u.model, name, value, modelSize)
	case "slot-id":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return hint.Wrap(errors.New("has a slot-id that is not a number"), "leave slot-id out, and name the token by token= or serial=")
		}
		slot := uint(n)
		u.slot = &slot
		return nil
	case "object", "type", "id":
		return hint.Wrap(fmt.Errorf("has the attribute %s, which names an object and not a token", name), "leave it out: the keys are those that bear the name in keyRing")
	}
	return hint.Wrap(fmt.Errorf("has the attribute %s, by which no token is looked for", name), "keep token, serial, manufacturer, model or slot-id")
}

func (u *tokenURI) setQuery(name, value string) error {
	switch name {
	case "module-path":
		u.module = value
		return nil
	case "pin-value":
		return hint.Wrap(errors.New("has pin-value: a PIN does not belong into a configuration"), "write the PIN to a file with mode 0400, name it in pinFile, and change the PIN if others could read this file")
	case "pin-source":
		return hint.Wrap(errors.New("has pin-source, which is not used; a command in it is never run"), "leave it out, and name the file with the PIN in pinFile")
	case "module-name":
		return hint.Wrap(errors.New("has module-name, which is looked for in more than one folder"), "name the one file with module-path=/PATH")
	}
	return hint.Wrap(fmt.Errorf("has the query attribute %s, which is not known", name), "leave it out: module-path is the only one that is used")
}

func setText(to *string, name, value string, size int) error {
	if value == "" || len(value) > size || strings.HasSuffix(value, " ") {
		return hint.Wrap(fmt.Errorf("has an attribute %s that is empty, longer than the %d bytes that a token has for it, or ends in a blank", name, size),
			"copy it from p11tool --list-token-urls or pkcs11-tool --list-slots")
	}
	*to = value
	return nil
}

// useURI fills in what the URI says, so that the rest of the program does not know whether there was one.
func (t *Token) useURI(p *problems, field func(string) string) {
	for _, other := range []string{"module", "label", "serial", "slot"} {
		if p.has(field(other)) {
			p.report(field(other), "is given although uri already has it", "keep one of the two")
		}
	}
	u, err := parseURI(t.URI)
	if err != nil {
		p.report(field("uri"), err.Error(), hint.Of(err))
		return
	}
	t.Module, t.Label, t.Serial, t.Slot = u.module, u.token, u.serial, u.slot
}

// Maker returns the manufacturer and model that the token must have; empty: any.
func (t *Token) Maker() (manufacturer, model string) {
	if t.URI == "" {
		return "", ""
	}
	u, _ := parseURI(t.URI) // it was understood when the file was read
	return u.manufacturer, u.model
}

// MarshalYAML writes a token as a file has it: with a URI, or with what it stands for.
func (t Token) MarshalYAML() (any, error) {
	type fields Token
	if t.URI != "" {
		t.Module, t.Label, t.Serial, t.Slot = "", "", "", nil
	}
	return fields(t), nil
}
