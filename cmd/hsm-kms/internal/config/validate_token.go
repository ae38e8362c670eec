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

// validateTokens judges the tokens of a ring with that profile; list is their field. names are those of the tokens of the rings
// before, and get those of this one.
func validateTokens(p *problems, list string, tokens []Token, profile string, names map[string]string) {
	if len(tokens) == 0 && !p.has(list+"[0]") {
		what := "is missing"
		if p.has(list) {
			what = "is empty"
		}
		p.report(list, what, "list at least one token, with name, module, label and pinFile")
	}
	if len(tokens) > maxTokens {
		p.report(list, fmt.Sprintf("has %d entries, at most %d are accepted", len(tokens), maxTokens), "keep the tokens that hold this ring")
		return
	}
	// The decoder leaves an item out that is no token at all, and the indices of the rest no longer fit the file. That
	// item has been reported.
	if p.has(tokenField(list, len(tokens), "")) {
		return
	}
	for i := range tokens {
		field := func(name string) string { return tokenField(list, i, name) }
		tokens[i].validate(p, field)
		validateUnique(p, list, tokens, i, names)
		if tokens[i].IVAppended && profile != ProfileAESGCMHSMIV {
			p.report(field("ivAppended"), "has no effect with profile "+profile, "remove it, or set profile: "+ProfileAESGCMHSMIV)
		}
	}
}

// tokenField returns the name of a field of token i of a list, or of the token itself.
func tokenField(list string, i int, name string) string {
	return strings.TrimSuffix(fmt.Sprintf("%s[%d].%s", list, i, name), ".")
}

func (t *Token) validate(p *problems, field func(string) string) {
	if !namePattern.MatchString(t.Name) {
		p.badValue(field("name"), t.Name, "1 to 63 of a-z, 0-9 and hyphen", "give it a short name, such as hsm-a")
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
		p.report(field("callTimeout"), fmt.Sprintf("is %s: every call would time out", t.CallTimeout), "choose 2s")
	case d >= apiTimeout:
		p.report(field("callTimeout"), fmt.Sprintf("is %s, and kube-apiserver gives up after %s", t.CallTimeout, apiTimeout), "choose less than 3s, such as 2s")
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
		p.badValue(field("swap"), t.Swap, "overlap or stop-first", "leave it out: the plugin finds it out")
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
		p.report(field(""), "none of label, serial and slot is given", "add label: with the token's label; hsm-kms doctor lists what is there")
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

// validateUnique sees that token i has a name that no other token has, and is not one of those before it in its ring.
func validateUnique(p *problems, list string, tokens []Token, i int, names map[string]string) {
	t := &tokens[i]
	if other, taken := names[t.Name]; taken {
		p.report(tokenField(list, i, "name"), fmt.Sprintf("%q is the name of %s too", t.Name, other), "give each token a name of its own, also one that holds two rings")
	} else if t.Name != "" {
		names[t.Name] = tokenField(list, i, "")
	}
	for j := range tokens[:i] {
		if u := &tokens[j]; t.Module == u.Module && t.sameToken(u) {
			p.report(tokenField(list, i, ""), fmt.Sprintf("is the same token as %s", tokenField(list, j, "")), "list each token once")
		}
	}
}
