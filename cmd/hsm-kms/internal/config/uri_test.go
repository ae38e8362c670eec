package config

import (
	"slices"
	"strings"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

const module = "?module-path=/usr/lib/p11.so"

func TestURIs(t *testing.T) {
	t.Parallel()
	three := uint(3)
	for text, want := range map[string]tokenURI{
		"pkcs11:token=k8s" + module:                                       {token: "k8s", module: "/usr/lib/p11.so"},
		"pkcs11:serial=2f1a" + module:                                     {serial: "2f1a", module: "/usr/lib/p11.so"},
		"pkcs11:slot-id=3" + module:                                       {slot: &three, module: "/usr/lib/p11.so"},
		"pkcs11:token=The%20token%3B%3d%2F%C3%A9" + module:                {token: "The token;=/é", module: "/usr/lib/p11.so"},
		"pkcs11:token=a+b" + module:                                       {token: "a+b", module: "/usr/lib/p11.so"},
		"pkcs11:token=a?module-path=/usr/lib/with%20blank%26%3F.so":       {token: "a", module: "/usr/lib/with blank&?.so"},
		"pkcs11:token=a?module-path=/usr/lib/a?b.so":                      {token: "a", module: "/usr/lib/a?b.so"},
		"pkcs11:model=M%231;manufacturer=Maker;serial=1;token=a" + module: {token: "a", serial: "1", manufacturer: "Maker", model: "M#1", module: "/usr/lib/p11.so"},
	} {
		got, err := parseURI(text)
		if (got.slot == nil) != (want.slot == nil) || got.slot != nil && *got.slot != *want.slot {
			t.Errorf("%s: slot %v", text, got.slot)
		}
		got.slot, want.slot = nil, nil
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
}

// A refusal says what to do, and does not repeat the URI: it may have a PIN.
func TestURIsThatAreRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"":                                  {"is not a URI of the scheme pkcs11", "pkcs11:token="},
		"token=a" + module:                  {"is not a URI of the scheme pkcs11", "pkcs11:token="},
		"PKCS11:token=a" + module:           {"is not a URI of the scheme pkcs11", "pkcs11:token="},
		"pkcs11:" + module:                  {"none of token, serial and slot-id", "token="},
		"pkcs11:manufacturer=m" + module:    {"none of token, serial and slot-id", "token="},
		"pkcs11:token=a":                    {"no module-path", "?module-path=/PATH"},
		"pkcs11:token=a?module-path=p11.so": {"no module-path that is absolute", "?module-path=/PATH"},
		"pkcs11:token=a;token=b" + module:   {"token twice", "keep one"},
		"pkcs11:token=a;" + module:          {"no attribute=value", "%3B"},
		"pkcs11:token" + module:             {"no attribute=value", "token=k8s"},
		"pkcs11:=a" + module:                {"no attribute=value", "token=k8s"},
		"pkcs11:token=" + module:            {"empty", "p11tool"},
		"pkcs11:token=a%20" + module:        {"ends in a blank", "p11tool"},
		"pkcs11:token=" + strings.Repeat("a", 33) + module:             {"longer than the 32 bytes", "p11tool"},
		"pkcs11:serial=12345678901234567" + module:                     {"longer than the 16 bytes", "p11tool"},
		"pkcs11:token=%ZZ" + module:                                    {"cannot be decoded", "%20"},
		"pkcs11:token=%FF" + module:                                    {"cannot be decoded", "%20"},
		"pkcs11:token=a%0Ab" + module:                                  {"cannot be decoded", "%20"},
		"pkcs11:slot-id=-1" + module:                                   {"not a number", "token="},
		"pkcs11:token=a;object=k" + module:                             {"object, which names an object", "keyRing"},
		"pkcs11:token=a;type=secret-key" + module:                      {"type, which names an object", "keyRing"},
		"pkcs11:token=a;id=%41" + module:                               {"id, which names an object", "keyRing"},
		"pkcs11:token=a;library-version=3" + module:                    {"library-version, by which no token", "keep token"},
		"pkcs11:token=a;slot-description=S" + module:                   {"slot-description, by which no token", "keep token"},
		"pkcs11:token=a;x-vendor=S" + module:                           {"x-vendor, by which no token", "keep token"},
		"pkcs11:token=a" + module + "&pin-value=geheim":                {"pin-value", "pinFile"},
		"pkcs11:token=a?pin-value=geheim":                              {"pin-value", "pinFile"},
		"pkcs11:token=a;pin-value=geheim" + module:                     {"pin-value, by which no token", "keep token"},
		"pkcs11:token=a" + module + "&pin-source=file:/geheim":         {"pin-source", "pinFile"},
		"pkcs11:token=a" + module + "&pin-source=%7C/usr/bin/geheim":   {"pin-source", "pinFile"},
		"pkcs11:token=a?module-name=geheim":                            {"module-name", "module-path=/PATH"},
		"pkcs11:token=a" + module + "&x-v=geheim":                      {"query attribute x-v", "leave it out"},
		"pkcs11:token=a;geheim geheim" + module:                        {"no attribute=value", "token=k8s"},
		"pkcs11:token=a;geh\neim=1" + module:                           {"no attribute=value", "token=k8s"},
		"pkcs11:token=a;geheim" + module + strings.Repeat("x", maxURI): {"more than 2048", "leave out"},
	} {
		got, err := parseURI(text)
		if err == nil || !strings.Contains(err.Error(), want[0]) || !strings.Contains(hint.Of(err), want[1]) || got != (tokenURI{}) {
			t.Errorf("%.80q: %+v, %v (hint: %s)\nwant %q", text, got, err, hint.Of(err), want)
			continue
		}
		if strings.Contains(err.Error()+hint.Of(err), "geheim") {
			t.Errorf("%.80q: the error repeats a value: %v", text, err)
		}
	}
}

const withURI = `apiVersion: hsm-kms/v1
kind: PluginConfiguration
keyRing: kube-secrets
tokens:
  - name: hsm-a
    uri: pkcs11:manufacturer=M;token=k8s;serial=1?module-path=/usr/lib/p11.so
    pinFile: /etc/hsm-kms/pin
`

// A URI stands for the fields that it replaces, beside which it is refused; tokens that differ in a serial are two.
func TestURIInAFile(t *testing.T) {
	t.Parallel()
	cfg, err := Parse("c.yaml", []byte(withURI))
	if err != nil {
		t.Fatal(err)
	}
	token := cfg.Tokens[0]
	manufacturer, model := token.Maker()
	if token.Module != "/usr/lib/p11.so" || token.Label != "k8s" || token.Serial != "1" || token.Slot != nil || manufacturer != "M" || model != "" {
		t.Errorf("%+v, %q, %q", token, manufacturer, model)
	}
	if text, err := yaml.Marshal(cfg); err != nil || strings.Contains(string(text), "module:") || !strings.Contains(string(text), "uri: pkcs11:") {
		t.Errorf("written: %s, %v", text, err)
	}
	second := "  - name: hsm-b\n    uri: pkcs11:token=k8s;serial=2?module-path=/usr/lib/p11.so\n    pinFile: /etc/hsm-kms/pin\n"
	if _, err := Parse("c.yaml", []byte(withURI+second)); err != nil {
		t.Errorf("two serials: %v", err)
	}
	for _, line := range []string{"module: /a", "label: a", "serial: a", "slot: 1"} {
		_, err := Parse("c.yaml", []byte(withURI+"    "+line+"\n"))
		if name, _, _ := strings.Cut(line, ":"); err == nil || !strings.Contains(err.Error(), "tokens[0]."+name+": is given although uri already has it") {
			t.Errorf("%s: %v", line, err)
		}
	}
	same := strings.Replace(second, "serial=2", "manufacturer=N", 1)
	if _, err := Parse("c.yaml", []byte(withURI+same)); err == nil || !strings.Contains(err.Error(), "is the same token as tokens[0]") {
		t.Errorf("one label: %v", err)
	}
	if _, err := Parse("c.yaml", []byte(strings.Replace(withURI, "?module", "?pin-value=geheim&module", 1))); err == nil ||
		!strings.Contains(err.Error(), "c.yaml:6: tokens[0].uri: has pin-value") || strings.Contains(err.Error(), "geheim") {
		t.Errorf("a PIN: %v", err)
	}
}

// FuzzURI: no URI makes a token that the file could not name, or an error that breaks out of its line.
func FuzzURI(f *testing.F) {
	f.Add("pkcs11:token=The%20token;serial=1;manufacturer=M;model=M;slot-id=1?module-path=/usr/lib/p11.so")
	f.Add("pkcs11:token=a?module-path=/a&pin-source=|/bin/sh")
	f.Add("pkcs11:;?&=%")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := parseURI(text)
		if err != nil {
			if hint.Of(err) == "" || u != (tokenURI{}) || strings.ContainsFunc(err.Error()+hint.Of(err), unicode.IsControl) {
				t.Fatalf("%+v, %v", u, err)
			}
			return
		}
		texts := []string{u.token, u.serial, u.manufacturer, u.model, u.module}
		if len(u.token) > labelSize || len(u.serial) > serialSize || u.module[0] != '/' ||
			slices.ContainsFunc(texts, func(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }) {
			t.Fatalf("%q: %+v", text, u)
		}
	})
}
