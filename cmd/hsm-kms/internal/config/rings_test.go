package config_test

import (
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// readRing is minimal with one read ring of these lines, from line 9 on; its token is old-a.
func readRing(lines ...string) string {
	return minimal + "readRings:\n  - " + strings.Join(lines, "\n    ") + "\n"
}

const oldTokens = "tokens: [{name: old-a, module: /opt/vendor/libp11.so, label: k8s, pinFile: old-pin}]"

// Each ring has its own name, profile, tokens and token names; one token may hold two rings.
func TestReadRings(t *testing.T) {
	t.Parallel()
	cfg := parse(t, readRing("keyRing: kube-old", "profile: hmac-kdf", "retiring: true",
		"tokens: [{name: hsm-a-old, module: /usr/lib/softhsm/libsofthsm2.so, label: k8s, pinFile: /etc/hsm-kms/pin}]"))
	if names := strings.Join(cfg.RingNames(), ","); names != "kube-secrets,kube-old" {
		t.Errorf("rings: %s", names)
	}
	if all := cfg.AllTokens(); len(all) != 2 || all[0].Name != "hsm-a" || all[1].Name != "hsm-a-old" || all[1].MaxSessions != 8 {
		t.Errorf("tokens: %+v", all)
	}
	for _, name := range []string{"", "kube-secrets"} {
		if of, read, err := cfg.ForRing(name); of != cfg || read != nil || err != nil {
			t.Errorf("ForRing(%q) = %v, %v, %v", name, of, read, err)
		}
	}
	of, read, err := cfg.ForRing("kube-old")
	if err != nil || !read.Retiring || of.KeyRing != "kube-old" || of.Profile != "hmac-kdf" || of.Tokens[0].Name != "hsm-a-old" || of.StateDir != cfg.StateDir {
		t.Errorf("ForRing(kube-old) = %+v, %+v, %v", of, read, err)
	}
	if cfg.KeyRing != "kube-secrets" || cfg.Tokens[0].Name != "hsm-a" {
		t.Errorf("ForRing changed the configuration: %+v", cfg)
	}
	if _, _, err := cfg.ForRing("kube-new"); err == nil || !strings.Contains(err.Error(), "kube-new") || hint.Of(err) != "the rings are: kube-secrets, kube-old" {
		t.Errorf("ForRing of a ring that is not there: %v, %s", err, hint.Of(err))
	}
}

func TestMistakesReadRings(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{readRing("keyRing: kube-secrets", oldTokens), `c.yaml:10: readRings[0].keyRing: "kube-secrets" is keyRing too`},
		{readRing("keyRing: old", oldTokens) + "  - {keyRing: old, tokens: [{name: b, module: /m, label: l, pinFile: p}]}\n",
			`c.yaml:12: readRings[1].keyRing: "old" is readRings[0].keyRing too`},
		{readRing("keyRing: Old", oldTokens), `c.yaml:10: readRings[0].keyRing: "Old" is not 1 to 63`},
		{readRing(oldTokens), "c.yaml:10: readRings[0].keyRing: is missing"},
		{readRing("keyRing: old"), "c.yaml:10: readRings[0].tokens: is missing"},
		{readRing("keyRing: old", "tokens: []"), "c.yaml:11: readRings[0].tokens: is empty"},
		{readRing("keyRing: old", "profile: rsa", oldTokens), `c.yaml:11: readRings[0].profile: "rsa" is not aes-gcm or`},
		{readRing("keyRing: old", "retiring: soon", oldTokens), `c.yaml:11: readRings[0].retiring: "soon" does not fit`},
		{readRing("keyRing: old", strings.Replace(oldTokens, "old-a", "hsm-a", 1)), `c.yaml:11: readRings[0].tokens[0].name: "hsm-a" is the name of tokens[0] too`},
		{readRing("keyRing: old", strings.Replace(oldTokens, "/opt/vendor/", "", 1)), `c.yaml:11: readRings[0].tokens[0].module: "libp11.so" is not an absolute path`},
		{readRing("keyRing: old", strings.Replace(oldTokens, "label", "ivAppended: true, label", 1)), "c.yaml:11: readRings[0].tokens[0].ivAppended: has no effect with profile aes-gcm"},
		{readRing("keyRing: old", oldTokens, "keyRnig: x"), "c.yaml:12: readRings[0].keyRnig: unknown field"},
		{minimal + "readRings: [old]\n", "c.yaml:9: readRings[0]: is not a mapping"},
		{minimal + "readRings:\n" + strings.Repeat("  - {keyRing: x}\n", 9), "c.yaml:9: readRings: has 9 entries, at most 8"},
	})
}
