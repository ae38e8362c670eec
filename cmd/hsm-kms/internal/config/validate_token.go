package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Lengths of the fields in CK_TOKEN_INFO (PKCS#11 v2.40, section 3.2), in bytes. They are padded with blanks there.
const (
	labelSize        = 32
	serialSize       = 16
	manufacturerSize = 32
	modelSize        = 16
)

func (c *Config) validateTokens(p *problems) {
	if len(c.Tokens) == 0 && !p.has("tokens[0]") {
		what := "is missing"
		if p.has("tokens") {
			what = "is empty"
		}
		p.report("tokens", what, "list at least one token, with name, module, label and pinFile")
	}
	if len(c.Tokens) > maxTokens {
		p.report("tokens", fmt.Sprintf("has %d entries, at most %d are accepted", len(c.Tokens), maxTokens), "keep the tokens that hold this ring")
		return
	}
	// The decoder leaves an item out that is no token at all, and the indices of the rest no longer fit the file. That
	// item has been reported.
	if p.has(tokenField(len(c.Tokens), "")) {
		return
	}
	for i := range c.Tokens {
		c.Tokens[i].validate(p, i)
		c.validateUnique(p, i)
		if c.Tokens[i].IVAppended && c.Profile != ProfileAESGCMHSMIV {
			p.report(tokenField(i, "ivAppended"), "has no effect with profile "+c.Profile, "remove it, or set profile: "+ProfileAESGCMHSMIV)
		}
	}
}

// tokenField returns the name of a field of token i, or of the token itself.
func tokenField(i int, name string) string {
	return strings.TrimSuffix(fmt.Sprintf("tokens[%d].%s", i, name), ".")
}

func (t *Token) validate(p *problems, i int) {
	field := func(name string) string { return tokenField(i, name) }
	if !namePattern.MatchString(t.Name) {
		p.badValue(field("name"), t.Name, "1 to 63 of a-z, 0-9 and hyphen", "give it a short name, as hsm-a")
	}
	if p.has(field("uri")) {
		t.useURI(p, field)
	} else {
		p.absolute(field("module"), t.Module, "as /usr/lib/softhsm/libsofthsm2.so")
		t.validateSelector(p, field)
	}
	t.validateLogin(p, field)
	p.number(field("maxSessions"), t.MaxSessions, 1, maxSessions)
	switch d := t.CallTimeout.Std(); {
	case d <= 0:
		p.report(field("callTimeout"), fmt.Sprintf("is %s, no call could ever finish", t.CallTimeout), "choose 2s")
	case d >= apiTimeout:
		p.report(field("callTimeout"), fmt.Sprintf("is %s, and kube-apiserver gives up after %s", t.CallTimeout, apiTimeout), "choose less than 3s, as 2s")
	}
	p.between(field("connectTimeout"), t.ConnectTimeout, max(time.Second, t.CallTimeout.Std()), 10*time.Minute)
	for name := range t.Env {
		if !variablePattern.MatchString(name) {
			p.badValue(field("env"), name, "the name of a variable", "as SOFTHSM2_CONF")
		}
	}
	for i, name := range t.PassEnv {
		if !variablePattern.MatchString(strings.TrimSuffix(name, "*")) {
			p.badValue(fmt.Sprintf("%s[%d]", field("passEnv"), i), name, "the name of a variable, or a prefix and *", "as VENDOR_*")
		}
	}
	if !slices.Contains([]string{"", "overlap", "stop-first"}, t.Swap) {
		p.badValue(field("swap"), t.Swap, "overlap or stop-first", "leave it out: it is found out")
	}
	if strings.ContainsRune(t.InitArgs, 0) || len(t.InitArgs) > 4096 {
		p.report(field("initArgs"), "has a NUL or more than 4096 bytes", "write it as the vendor's manual says")
	}
}

// validateLogin sees that there is a PIN file where one is used, and only there.
func (t *Token) validateLogin(p *problems, field func(string) string) {
	p.oneOf(field("login"), t.Login, LoginPIN, LoginNone, LoginPINPad)
	if t.Login == LoginNone || t.Login == LoginPINPad {
		for name, given := range map[string]bool{"pinFile": p.has(field("pinFile")), "emptyPIN": t.EmptyPIN, "allowGroupPIN": t.AllowGroupPIN} {
			if given {
				p.report(field(name), "has no effect with login: "+t.Login, "remove it, or set login: pin")
			}
		}
		return
	}
	if !filepath.IsAbs(t.PINFile) && (t.PINFile == "" || t.PINFile == "." || t.PINFile == ".." || strings.Contains(t.PINFile, "/")) {
		p.badValue(field("pinFile"), t.PINFile, "an absolute path or the name of a systemd credential", "as /etc/hsm-kms/pin, or pin with LoadCredential=pin:FILE")
	}
}

// validateSelector sees that the token is named in exactly one way.
func (t *Token) validateSelector(p *problems, field func(string) string) {
	given := slices.DeleteFunc([]string{"label", "serial", "slot"}, func(name string) bool { return !p.has(field(name)) })
	switch len(given) {
	case 0:
		p.report(field(""), "none of label, serial and slot says which token it is", "add label: with the token's label; hsm-kms doctor lists what is there")
	case 1:
	default:
		p.report(field(given[1]), "is given beside "+given[0]+", and exactly one says which token it is", "keep label")
	}
	if p.has(field("label")) {
		p.padded(field("label"), t.Label, labelSize)
	}
	if p.has(field("serial")) {
		p.padded(field("serial"), t.Serial, serialSize)
	}
}

// padded checks a text that the token holds in a field of size bytes, filled up with blanks: blanks at its end could
// never be told from those.
func (p *problems) padded(field, text string, size int) {
	switch {
	case text == "":
		p.report(field, "is empty", "pkcs11-tool --list-slots shows it")
	case len(text) > size:
		p.report(field, fmt.Sprintf("is %d bytes long, a token has room for %d", len(text), size), "pkcs11-tool --list-slots shows it")
	case strings.HasSuffix(text, " "):
		p.report(field, "ends in a blank", "leave out the blanks that the token pads it with")
	}
}

// sameToken reports whether both name one token: in a way in which both name theirs, and in no such way another.
func (t *Token) sameToken(u *Token) bool {
	same := false
	for _, pair := range [][2]string{{t.Label, u.Label}, {t.Serial, u.Serial}, {slotText(t.Slot), slotText(u.Slot)}} {
		if pair[0] == "" || pair[1] == "" {
			continue
		}
		if pair[0] != pair[1] {
			return false
		}
		same = true
	}
	return same
}

func slotText(slot *uint) string {
	if slot == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*slot), 10)
}

// validateUnique sees that token i is not one of those before it under the same name, or again under another.
func (c *Config) validateUnique(p *problems, i int) {
	t := &c.Tokens[i]
	for j := range c.Tokens[:i] {
		u := &c.Tokens[j]
		if t.Name == u.Name && t.Name != "" {
			p.report(tokenField(i, "name"), fmt.Sprintf("%q is the name of tokens[%d] too", t.Name, j), "give each token a name of its own")
		}
		if t.Module == u.Module && t.sameToken(u) {
			p.report(tokenField(i, ""), fmt.Sprintf("is the same token as tokens[%d]", j), "list each token once")
		}
	}
}
