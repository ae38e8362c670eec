package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// mistake is a file with one thing wrong, and the start of the line that must be said of it.
type mistake struct{ text, want string }

func replaced(old, new string) string { return strings.Replace(minimal, old, new, 1) }

func added(lines ...string) string { return minimal + strings.Join(lines, "\n") + "\n" }

// token is minimal with more fields in its token.
func token(lines ...string) string { return minimal + "    " + strings.Join(lines, "\n    ") + "\n" }

// second is minimal with another token.
func second(lines ...string) string { return minimal + "  - " + strings.Join(lines, "\n    ") + "\n" }

func checkMistakes(t *testing.T, all []mistake) {
	t.Helper()
	for _, tc := range all {
		cfg, err := config.Parse("c.yaml", []byte(tc.text))
		if err == nil {
			t.Errorf("accepted, want %s\n%s", tc.want, tc.text)
			continue
		}
		if cfg != nil || !hasLine(err, tc.want) || !strings.Contains(err.Error(), "(hint: ") || hint.Of(err) == "" {
			t.Errorf("want %s\n got %v", tc.want, err)
		}
	}
}

func TestMistakesFile(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{"", "c.yaml: is empty"},
		{"# nothing\n", "c.yaml: is empty"},
		{"---\n", "c.yaml:2: has no value"},
		{"text\n", "c.yaml:1: is not a mapping"},
		{"- a\n", "c.yaml:1: is not a mapping"},
		{added("---", "a: b"), "c.yaml:9: holds a second document"},
		{added("a: [b"), "c.yaml:8: is not valid YAML"},
		{added("\ta: b"), "c.yaml:8: is not valid YAML"},
		{minimal + "\xff\n", "c.yaml: is not valid YAML"},
		{added("http: &a {address: ''}"), "c.yaml:9: http: anchors, aliases and tags"},
		{added("profile: !!str aes-gcm"), "c.yaml:9: profile: anchors, aliases and tags"},
		{added("<<: {profile: aes-gcm}"), "c.yaml:9: <<: unknown field"},
		{added("? [a]", ": b"), "c.yaml:9: has a key that is not a plain name"},
	})
}

func TestMistakesFields(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{added("colour: red"), "c.yaml:9: colour: unknown field (hint: fields here are apiVersion,"},
		{added("socket:", "  path: /a", "  Mode: '0600'"), "c.yaml:11: socket.Mode: unknown field (hint: fields here are path, mode, group, allowedUIDs)"},
		{token("pin: 1234"), "c.yaml:9: tokens[0].pin: unknown field"},
		{added("keyRing: other"), "c.yaml:9: keyRing: is there twice, first in line 3"},
		{token("label: other"), "c.yaml:9: tokens[0].label: is there twice, first in line 7"},
		{added("profile:"), "c.yaml:9: profile: has no value"},
		{added("http: {address: }"), "c.yaml:9: http.address: has no value"},
		{added("http: 127.0.0.1:9808"), "c.yaml:9: http: is not a mapping (hint: write `field: value` lines: address)"},
		{added("refuseKeys: a"), "c.yaml:9: refuseKeys: is not a list"},
		{added("profile: [aes-gcm]"), "c.yaml:9: profile: is not a single value"},
		{added("profile: \"aes\\ngcm\""), "c.yaml:9: profile: holds a line break"},
		{added("allowImportedKeys: maybe"), `c.yaml:9: allowImportedKeys: "maybe" does not fit (hint: write true or false)`},
		{replaced("hsm-kms/v1", "hsm-kms/v2"), `c.yaml:1: apiVersion: "hsm-kms/v2" is not hsm-kms/v1 (hint: write apiVersion: hsm-kms/v1)`},
		{replaced("apiVersion: hsm-kms/v1\n", ""), "c.yaml:1: apiVersion: is missing"},
		{replaced("PluginConfiguration", "Pod"), `c.yaml:2: kind: "Pod" is not PluginConfiguration`},
	})
}

func TestMistakesSocket(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{added("socket: {path: run/kms.sock}"), `c.yaml:9: socket.path: "run/kms.sock" is not an absolute path`},
		{added("socket: {path: '@kms'}"), `c.yaml:9: socket.path: "@kms" is not an absolute path`},
		{added("socket: {path: /run/}"), `c.yaml:9: socket.path: "/run/" is a folder`},
		{added("socket: {path: /" + strings.Repeat("x", 107) + "}"), "c.yaml:9: socket.path: is 108 bytes long, the kernel takes 107"},
		{added("socket: {mode: '0666'}"), "c.yaml:9: socket.mode: 0666 lets every user of this machine connect"},
		{added("socket: {mode: '0661'}"), "c.yaml:9: socket.mode: 0661 lets every user"},
		{added("socket: {mode: '0400'}"), "c.yaml:9: socket.mode: 0400 is neither 0600 nor 0660"},
		{added("socket: {mode: '4600'}"), "c.yaml:9: socket.mode: 4600 is neither"},
		{added("socket: {mode: rw}"), `c.yaml:9: socket.mode: "rw" is not a file mode in octal`},
		{added("socket: {mode: 0680}"), `c.yaml:9: socket.mode: "0680" is`},
		{added("socket: {group: kube}"), "c.yaml:9: socket.group: has no effect with mode 0600"},
		{added("socket: {group: '', mode: '0660'}"), "c.yaml:9: socket.group: is empty"},
		{added("socket: {group: 'a b', mode: '0660'}"), `c.yaml:9: socket.group: "a b" is not a group's name`},
		{added("socket: {allowedUIDs: []}"), "c.yaml:9: socket.allowedUIDs: lets nobody connect"},
		{added("socket: {allowedUIDs: [0, root]}"), `c.yaml:9: socket.allowedUIDs[1]: "root" does not fit (hint: write a whole number`},
		{added("socket: {allowedUIDs: [-1]}"), `c.yaml:9: socket.allowedUIDs[0]: "-1" does not fit`},
		{added("socket: {allowedUIDs: [4294967296]}"), `c.yaml:9: socket.allowedUIDs[0]: "4294967296" does not fit`},
		{added("socket: {group: '4294967296', mode: '0660'}"), `c.yaml:9: socket.group: "4294967296" is not a group's name`},
	})
}

func TestMistakesRing(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{replaced("kube-secrets", "Kube"), `c.yaml:3: keyRing: "Kube" is not 1 to 63 of a-z`},
		{replaced("kube-secrets", strings.Repeat("k", 64)), "c.yaml:3: keyRing: "},
		{replaced("kube-secrets", "''"), "c.yaml:3: keyRing: is empty"},
		{replaced("keyRing: kube-secrets\n", ""), "c.yaml:1: keyRing: is missing"},
		{added("profile: rsa"), `c.yaml:9: profile: "rsa" is not aes-gcm or hmac-kdf or aes-gcm-hsm-iv`},
		{added("refuseKeys: [a, '']"), "c.yaml:9: refuseKeys[1]: is 0 bytes long"},
		{added("refuseKeys: [" + strings.Repeat("a", 257) + "]"), "c.yaml:9: refuseKeys[0]: is 257 bytes long"},
		{added("refuseKeys: [a, b, a]"), `c.yaml:9: refuseKeys[2]: "a" is there twice`},
		{added("refuseKeys: [" + strings.Repeat("a, ", 257) + "]"), "c.yaml:9: refuseKeys: has 257 entries, at most 256"},
	})
}

func TestMistakesTokens(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{minimal[:strings.Index(minimal, "tokens:")], "c.yaml:1: tokens: is missing"},
		{minimal[:strings.Index(minimal, "tokens:")] + "tokens: []\n", "c.yaml:4: tokens: is empty"},
		{added("  - hsm-b"), "c.yaml:9: tokens[1]: is not a mapping"},
		{minimal + strings.Repeat("  - {name: x}\n", 16), "c.yaml:4: tokens: has 17 entries, at most 16"},
		{replaced("name: hsm-a", "name: HSM_A"), `c.yaml:5: tokens[0].name: "HSM_A" is not 1 to 63 of a-z`},
		{replaced("name: hsm-a\n    module", "module"), "c.yaml:5: tokens[0].name: is missing"},
		{second("name: hsm-a", "module: /m", "label: k8s", "pinFile: pin"), `c.yaml:9: tokens[1].name: "hsm-a" is the name of tokens[0] too`},
		{second("name: hsm-b", "module: /usr/lib/softhsm/libsofthsm2.so", "label: k8s", "pinFile: pin"), "c.yaml:9: tokens[1]: is the same token as tokens[0]"},
		{replaced("/usr/lib/softhsm/libsofthsm2.so", "libsofthsm2.so"), `c.yaml:6: tokens[0].module: "libsofthsm2.so" is not an absolute path`},
		{replaced("    label: k8s\n", ""), "c.yaml:5: tokens[0]: none of label, serial and slot"},
		{token("slot: 0"), "c.yaml:9: tokens[0].slot: is given beside label"},
		{token("serial: ''"), "c.yaml:9: tokens[0].serial: is "},
		{replaced("label: k8s", "label: ''"), "c.yaml:7: tokens[0].label: is empty"},
		{replaced("label: k8s", "label: 'k8s '"), "c.yaml:7: tokens[0].label: ends in a blank"},
		{replaced("label: k8s", "label: "+strings.Repeat("x", 33)), "c.yaml:7: tokens[0].label: is 33 bytes long, a token has room for 32"},
		{replaced("label: k8s", "serial: "+strings.Repeat("1", 17)), "c.yaml:7: tokens[0].serial: is 17 bytes long, a token has room for 16"},
		{replaced("label: k8s", "slot: one"), `c.yaml:7: tokens[0].slot: "one" does not fit`},
		{replaced("    pinFile: /etc/hsm-kms/pin\n", ""), "c.yaml:5: tokens[0].pinFile: is missing"},
		{replaced("/etc/hsm-kms/pin", "hsm-kms/pin"), `c.yaml:8: tokens[0].pinFile: "hsm-kms/pin" is not an absolute path or`},
		{replaced("/etc/hsm-kms/pin", ".."), `c.yaml:8: tokens[0].pinFile: ".." is not`},
		{token("maxSessions: 0"), "c.yaml:9: tokens[0].maxSessions: is 0, outside 1 to 1024"},
		{token("maxSessions: 1025"), "c.yaml:9: tokens[0].maxSessions: is 1025"},
		{token("maxSessions: 8.5"), `c.yaml:9: tokens[0].maxSessions: "8.5" is a fraction`},
		{token("maxSessions: '8'"), `c.yaml:9: tokens[0].maxSessions: "8" does not fit (hint: write a whole number, without quotes)`},
		{token("callTimeout: 0s"), "c.yaml:9: tokens[0].callTimeout: is 0s: every call would time out"},
		{token("callTimeout: -1s"), "c.yaml:9: tokens[0].callTimeout: is -1s"},
		{token("callTimeout: 3s"), "c.yaml:9: tokens[0].callTimeout: is 3s, and kube-apiserver gives up after 3s"},
		{token("callTimeout: 2"), `c.yaml:9: tokens[0].callTimeout: "2" is not a length of time`},
	})
}

func TestMistakesRest(t *testing.T) {
	t.Parallel()
	checkMistakes(t, []mistake{
		{added("stateDir: lib"), `c.yaml:9: stateDir: "lib" is not an absolute path`},
		{added("stateDir: ''"), "c.yaml:9: stateDir: is empty"},
		{added("refreshInterval: 500ms"), "c.yaml:9: refreshInterval: is 500ms, outside 1s to 1h"},
		{added("refreshInterval: 2h"), "c.yaml:9: refreshInterval: is 2h, outside"},
		{added("probeInterval: 0s"), "c.yaml:9: probeInterval: is 0s, outside 1s to 10m"},
		{added("writeContinuation: -1s"), "c.yaml:9: writeContinuation: is -1s, outside 0s to 24h"},
		{added("writeContinuation: 25h"), "c.yaml:9: writeContinuation: is 25h"},
		{added("outageHold: 73h"), "c.yaml:9: outageHold: is 73h"},
		{added("http: {address: localhost}"), `c.yaml:9: http.address: "localhost" is not host:port`},
		{added("http: {address: 'localhost:http'}"), `c.yaml:9: http.address: "localhost:http" is not host:port: port "http"`},
		{added("http: {address: 'http://a:1'}"), "c.yaml:9: http.address: "},
		{added("audit: {path: audit.log}"), `c.yaml:9: audit.path: "audit.log" is not an absolute path`},
		{added("audit: {path: '', required: true}"), "c.yaml:9: audit.required: is true, and audit.path is empty"},
		{added("audit: {maxSizeMB: 0}"), "c.yaml:9: audit.maxSizeMB: is 0, outside 1 to 10000"},
		{added("logging: {level: trace}"), `c.yaml:9: logging.level: "trace" is not debug or`},
		{added("logging: {format: xml}"), `c.yaml:9: logging.format: "xml" is not json or text`},
	})
}

func hasLine(err error, prefix string) bool {
	for line := range strings.SplitSeq(fmt.Sprint(err), "\n") {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}

func TestMistakesLogin(t *testing.T) {
	t.Parallel()
	withoutFile := func(lines ...string) string {
		return strings.Replace(token(lines...), "    pinFile: /etc/hsm-kms/pin\n", "", 1)
	}
	checkMistakes(t, []mistake{
		{token("login: card"), `c.yaml:9: tokens[0].login: "card" is not pin or none or pinpad`},
		{token("swap: both"), `c.yaml:9: tokens[0].swap: "both" is not overlap or stop-first`},
		{token(`login: ""`), "c.yaml:9: tokens[0].login: is empty"},
		{token("login: none"), "c.yaml:8: tokens[0].pinFile: has no effect with login: none"},
		{withoutFile("login: pinpad", "emptyPIN: true"), "c.yaml:9: tokens[0].emptyPIN: has no effect with login: pinpad"},
		{withoutFile("login: pin"), "c.yaml:5: tokens[0].pinFile: is missing"},
		{token("emptyPIN: yes please"), `c.yaml:9: tokens[0].emptyPIN: "yes please" does not fit`},
	})
	for _, login := range []string{"none", "pinpad"} {
		if _, err := config.Parse("c.yaml", []byte(withoutFile("login: "+login))); err != nil {
			t.Error(err)
		}
	}
}
