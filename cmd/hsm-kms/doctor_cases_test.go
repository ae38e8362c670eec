package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// broken is a set-up with one thing wrong, and what doctor must say of it, and of nothing else.
type broken struct {
	name  string
	spoil func(*rig)
	check string
	token string
	hint  string // part of it
	warns bool   // it is a warning and not a failure
}

func filesBroken() []broken {
	return []broken{
		{name: "no configuration", check: "configuration", hint: "hsm-kms config example prints a sample",
			spoil: func(r *rig) { r.args = []string{"--config", filepath.Join(r.dir, "absent.yaml")} }},
		{name: "unknown field", check: "configuration", hint: "fields here are",
			spoil: func(r *rig) { r.extra = "keyRng: x\n" }},
		{name: "refuseKeys misspelt", check: "configuration", hint: "keys list",
			spoil: func(r *rig) { r.extra = "refuseKeys: [nonsense]\n" }},
		{name: "stateDir open to others", check: "state-dir", hint: "chmod 0700",
			spoil: func(r *rig) { r.chmod(r.state, 0o777) }},
		{name: "audit folder is a file", check: "audit", hint: "set audit.path",
			spoil: func(r *rig) { r.audit = filepath.Join(r.file("plain", ""), "audit.log") }},
		{name: "module absent", check: "module", token: "hsm-a", hint: "install the vendor's",
			spoil: func(r *rig) { r.tokens[0].module = filepath.Join(r.dir, "absent.so") }},
		{name: "module is no library", check: "module", token: "hsm-a", hint: "install the vendor's library for this system",
			spoil: func(r *rig) { r.tokens[0].module = r.file("text.so", "not a library\n") }},
		{name: "others may change the module", check: "module", token: "hsm-a", hint: "chmod go-w",
			spoil: func(r *rig) { r.chmod(r.tokens[0].module, 0o666) }},
		{name: "others may change the module's folder", check: "module", token: "hsm-a", hint: "or move the module",
			spoil: func(r *rig) { r.chmod(filepath.Dir(r.tokens[0].module), 0o777) }},
		{name: "PIN file absent", check: "pin-file", token: "hsm-a", hint: "put the token's user PIN there",
			spoil: func(r *rig) { r.tokens[0].pin = filepath.Join(r.dir, "absent") }},
		{name: "PIN file open to others", check: "pin-file", token: "hsm-a", hint: "chmod 0400",
			spoil: func(r *rig) { r.chmod(r.tokens[0].pin, 0o644) }},
		{name: "PIN file empty", check: "pin-file", token: "hsm-a", hint: "nothing else",
			spoil: func(r *rig) { r.tokens[0].pin = r.file("pin", "\n") }},
		{name: "PIN file with a comment", check: "pin-file", token: "hsm-a", hint: "nothing else",
			spoil: func(r *rig) { r.tokens[0].pin = r.file("pin", "# PIN\n1234\n") }},
		{name: "others may replace the socket", check: "socket-folder", hint: "chmod go-w",
			spoil: func(r *rig) { r.chmod(filepath.Dir(r.socket), 0o777) }},
		{name: "something else at the socket's place", check: "socket-folder", hint: "move it away",
			spoil: func(r *rig) { r.file("run/kms.sock", "") }},
		{name: "http address in use", check: "http", hint: "find out who listens", warns: true,
			spoil: func(r *rig) {
				l, err := (&net.ListenConfig{}).Listen(r.t.Context(), "tcp", "127.0.0.1:0")
				r.must(err)
				r.t.Cleanup(func() { _ = l.Close() })
				r.http = l.Addr().String()
			}},
	}
}

func tokensBroken() []broken {
	return []broken{
		{name: "label misspelt", check: "token", token: "hsm-a", hint: "names it by label, serial or slot",
			spoil: func(r *rig) { r.tokens[0].label = "k9s" }},
		{name: "token pulled out", check: "token", token: "hsm-a", hint: "check that the HSM is reachable",
			spoil: func(r *rig) { r.tokens[0].faults.HideSlots(true) }},
		{name: "module does not start", check: "token", token: "hsm-a", hint: "vendor's own tool",
			spoil: func(r *rig) { r.tokens[0].faults.Fail("C_Initialize", pkcs11.CKR_DEVICE_ERROR).UntilCleared() }},
		{name: "module hangs", check: "token", token: "hsm-a", hint: "does not answer",
			spoil: func(r *rig) { r.tokens[0].faults.Hang("C_GetTokenInfo") }},
		{name: "no AES-GCM", check: "mechanisms", token: "hsm-a", hint: "profile: hmac-kdf",
			spoil: func(r *rig) {
				r.tokens[0].faults.Fail("C_GetMechanismInfo", pkcs11.CKR_MECHANISM_INVALID).UntilCleared()
			}},
		{name: "PIN locked", check: "pin-counters", token: "hsm-a", hint: "security officer",
			spoil: func(r *rig) { r.tokens[0].faults.TokenFlags(pkcs11.CKF_USER_PIN_LOCKED) }},
		{name: "last try", check: "pin-counters", token: "hsm-a", hint: "log in by hand",
			spoil: func(r *rig) {
				r.tokens[0].faults.TokenFlags(pkcs11.CKF_USER_PIN_FINAL_TRY)
				r.args = []string{"--try-pin"}
			}},
		{name: "a failed login before", check: "pin-counters", token: "hsm-a", hint: "find out who tried it", warns: true,
			spoil: func(r *rig) { r.tokens[0].faults.TokenFlags(pkcs11.CKF_USER_PIN_COUNT_LOW) }},
		{name: "PIN wrong", check: "login", token: "hsm-a", hint: "write the right PIN",
			spoil: func(r *rig) { r.tokens[0].pin = r.file("pin", "wrong\n") }},
		{name: "PIN refused before", check: "pin-latch", token: "hsm-a", hint: "doctor --try-pin",
			spoil: func(r *rig) {
				r.tokens[0].pin = r.file("pin", "wrong\n")
				r.write()
				r.doctor()
				r.tokens[0].faults.Fail("C_Login", pkcs11.CKR_GENERAL_ERROR).UntilCleared() // nobody may come to know
			}},
		{name: "login fails for another cause", check: "login", token: "hsm-a", hint: "check that the HSM answers",
			spoil: func(r *rig) { r.tokens[0].faults.Fail("C_Login", pkcs11.CKR_DEVICE_ERROR).UntilCleared() }},
		{name: "it cannot open what it sealed", check: "self-test", token: "hsm-a", hint: "do not use this token",
			spoil: func(r *rig) { r.tokens[0].faults.Corrupt("C_Encrypt").UntilCleared() }},
		{name: "second token without a module", check: "module", token: "hsm-b", hint: "install the vendor's",
			spoil: func(r *rig) {
				b := r.another()
				r.generate(b, r.first)
				b.module = filepath.Join(r.dir, "absent.so")
			}},
	}
}

func ringsBroken() []broken {
	return []broken{
		{name: "ring empty", check: "ring", hint: "keys create",
			spoil: func(r *rig) { r.empty(r.tokens[0]) }},
		{name: "key that anyone could plant", check: "key-attributes", token: "hsm-a", hint: "find out who put it there",
			spoil: func(r *rig) {
				r.empty(r.tokens[0])
				r.plant(r.tokens[0], pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false))
			}},
		{name: "key that can leave the HSM", check: "key-attributes", token: "hsm-a", hint: "keys rotate",
			spoil: func(r *rig) {
				r.empty(r.tokens[0])
				r.plant(r.tokens[0], pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true))
			}},
		{name: "planted beside a sound one", check: "key-attributes", token: "hsm-a", hint: "find out who put it there", warns: true,
			spoil: func(r *rig) { r.plant(r.tokens[0], pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false)) }},
		{name: "128 bits", check: "key-attributes", token: "hsm-a", hint: "profile",
			spoil: func(r *rig) {
				r.empty(r.tokens[0])
				r.plant(r.tokens[0], pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 16))
			}},
		{name: "two keys made elsewhere", check: "ring", hint: "keys list",
			spoil: func(r *rig) {
				r.empty(r.tokens[0])
				r.plant(r.tokens[0], pkcs11.NewAttribute(pkcs11.CKA_ID, "one"))
				r.plant(r.tokens[0], pkcs11.NewAttribute(pkcs11.CKA_ID, "two"))
			}},
		{name: "rehearsal with the only key", check: "key-attributes", token: "hsm-a", hint: "refuseKeys",
			spoil: func(r *rig) { r.extra = "refuseKeys: [" + r.currentKey() + "]\n" }},
		{name: "the proven key is gone", check: "ring", hint: "restore the key",
			spoil: func(r *rig) {
				r.must(os.WriteFile(filepath.Join(r.state, "proven.json"), fmt.Appendf(nil, `{"keyID":%q,"provenAt":"2026-01-02T03:04:05Z"}`, r.currentKey()), 0o600))
				r.empty(r.tokens[0])
				r.generateAt(r.tokens[0], time.Now().Add(-72*time.Hour))
			}},
		{name: "clock", check: "ring", hint: "clock", warns: true,
			spoil: func(r *rig) {
				r.empty(r.tokens[0])
				r.generateAt(r.tokens[0], time.Now().Add(time.Hour))
			}},
		{name: "key not copied", check: "same-keys", token: "hsm-b", hint: "copy the key from hsm-a to hsm-b",
			spoil: func(r *rig) {
				copied, err := r.tokens[0].store.CopyTo(filepath.Join(r.dir, "hsm-b"))
				r.must(err)
				r.addToken("hsm-b", copied)
				r.generateAt(r.tokens[0], time.Now())
			}},
		{name: "pending key not copied yet", check: "same-keys", token: "hsm-b", hint: "before then", warns: true,
			spoil: func(r *rig) {
				copied, err := r.tokens[0].store.CopyTo(filepath.Join(r.dir, "hsm-b"))
				r.must(err)
				r.addToken("hsm-b", copied)
				r.generateAt(r.tokens[0], time.Now().Add(time.Hour))
			}},
		{name: "another key under the same CKA_ID", check: "same-keys", hint: "keep every key; find out which key_ids are in use",
			spoil: func(r *rig) { r.generate(r.another(), r.first) }},
	}
}

func pluginsBroken() []broken {
	return []broken{
		{name: "no plugin where one was named", check: "plugin", hint: "start it",
			spoil: func(r *rig) { r.args = []string{"--socket", r.socket} }},
		{name: "a plugin left its socket", check: "plugin", hint: "find out why it does not run",
			spoil: func(r *rig) {
				l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket})
				r.must(err)
				l.SetUnlinkOnClose(false)
				r.must(l.Close())
			}},
		{name: "plugin unwell", check: "plugin", hint: "the plugin's log has",
			spoil: func(r *rig) { r.serve("the HSM is unavailable", "") }},
		{name: "plugin of another ring", check: "plugin", hint: "runs with this configuration",
			spoil: func(r *rig) { r.serve("ok", "other/x61/0011223344556677") }},
		{name: "configuration changed since", check: "plugin-process", hint: "restart the plugin", warns: true,
			spoil: func(r *rig) {
				if runtime.GOOS != "linux" {
					r.t.Skip("what the plugin's process runs with is not known here")
				}
				r.serve("ok", r.currentKey())
				r.changed = time.Now().Add(time.Hour)
			}},
		{name: "plugin of another user", check: "socket-folder", hint: "add 0 to socket.allowedUIDs", warns: true,
			spoil: func(r *rig) { r.allowedUIDs = "[12345]" }},
		{name: "allowed peer that the socket's mode keeps out", check: "socket-folder", hint: "socket.group", warns: true,
			spoil: func(r *rig) {
				r.serve("ok", r.currentKey())
				r.chmod(r.socket, 0o600)
				r.allowedUIDs = "[0, 4000000001]"
			}},
	}
}

// encryption makes an EncryptionConfiguration for the rig; SOCKET is its socket.
func encryption(resources, providers string) func(*rig) {
	return func(r *rig) {
		r.enc = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [" + resources + "]\n  providers: [" +
			strings.ReplaceAll(providers, "SOCKET", r.socket) + "]\n"
	}
}

const (
	goodKMS  = `{kms: {apiVersion: v2, name: hsm-kms, endpoint: "unix://SOCKET", timeout: 3s}}`
	identity = "{identity: {}}"
	cbcKey   = "c2VjcmV0LWNhbmFyeS1rZXktb2YtMzItYnl0ZXMtYWI="
	cbc      = "{aescbc: {keys: [{name: k, secret: " + cbcKey + "}]}}"
)

func encryptionsBroken() []broken {
	kms := func(old, new string) string { return strings.Replace(goodKMS, old, new, 1) }
	keys := func(name, provider string) broken {
		return broken{name: "encryption: keys, " + name, check: "encryption-keys", hint: "copy all keys of that provider",
			spoil: encryption("secrets", goodKMS+","+provider+","+identity)}
	}
	return []broken{
		keys("the placeholder of manifests", strings.Replace(cbc, cbcKey, `"<copy it from your present EncryptionConfiguration>"`, 1)),
		keys("one of another length", strings.Replace(cbc, cbcKey, "c2hvcnQ=", 1)),
		keys("secretbox of 16 bytes", "{secretbox: {keys: [{name: k, secret: MDEyMzQ1Njc4OWFiY2RlZg==}]}}"),
		keys("no secret", "{aesgcm: {keys: [{name: k}]}}"),
		keys("none", "{aesgcm: {keys: []}}"),
		{name: "encryption: absent", check: "encryption-config", hint: "--encryption-provider-config",
			spoil: func(r *rig) { r.args = []string{"--encryption-config", filepath.Join(r.dir, "absent")} }},
		{name: "encryption: another kind", check: "encryption-config", hint: "manifests encryption-config",
			spoil: func(r *rig) { r.enc = "apiVersion: v1\nkind: Pod\n" }},
		{name: "encryption: misspelt", check: "encryption-config", hint: "manifests encryption-config",
			spoil: encryption("secrets", kms("endpoint", "endpiont"))},
		{name: "encryption: one name twice", check: "encryption-config", hint: "kube-apiserver does not start with it",
			spoil: encryption("secrets,secrets", goodKMS+","+identity)},
		{name: "encryption: a provider that is none", check: "encryption-config", hint: "kube-apiserver does not start with it",
			spoil: encryption("secrets", goodKMS+",{},"+identity)},
		{name: "encryption: another socket", check: "encryption-endpoint", hint: "set endpoint: unix:///",
			spoil: encryption("secrets", kms("SOCKET", "/run/other.sock")+","+identity)},
		{name: "encryption: no kms", check: "encryption-endpoint", hint: "set endpoint: unix:///",
			spoil: encryption("configmaps,secrets", kms("SOCKET", "/run/other.sock"))},
		{name: "encryption: KMS v1", check: "encryption-provider", hint: "apiVersion: v2",
			spoil: encryption("secrets", kms("apiVersion: v2, ", "")+","+identity)},
		{name: "encryption: cachesize", check: "encryption-provider", hint: "remove cachesize",
			spoil: encryption("secrets", kms("timeout", "cachesize: 10, timeout")+","+identity)},
		{name: "encryption: timeout", check: "encryption-provider", hint: "timeout: 3s",
			spoil: encryption("secrets", kms("3s", "1s")+","+identity)},
		{name: "encryption: identity first", check: "encryption-order", hint: "identity last",
			spoil: encryption("secrets", identity+","+goodKMS)},
		{name: "encryption: identity in between", check: "encryption-order", hint: "move identity to the end",
			spoil: encryption("secrets", goodKMS+","+identity+","+cbc)},
		{name: "encryption: another provider first", check: "encryption-order", hint: "put this plugin first", warns: true,
			spoil: encryption("secrets", cbc+","+goodKMS+","+identity)},
		{name: "encryption: step 1, and this plugin writes", check: "encryption-order", hint: "at step 1 the provider that was there before comes first",
			spoil: func(r *rig) { encryption("secrets", goodKMS+","+identity)(r); r.args = []string{"--step", "1"} }},
		{name: "encryption: step 1, identity in between", check: "encryption-order", hint: "put this plugin first", warns: true,
			spoil: func(r *rig) { encryption("secrets", cbc+","+identity+","+goodKMS)(r); r.args = []string{"--step", "1"} }},
		{name: "encryption: no identity", check: "encryption-order", hint: "add identity", warns: true,
			spoil: encryption("secrets", goodKMS)},
		{name: "encryption: secrets left out", check: "encryption-resources", hint: "add secrets",
			spoil: encryption("configmaps", goodKMS+","+identity)},
		{name: "encryption: keys open to others", check: "encryption-config", hint: "chmod 0600",
			spoil: func(r *rig) {
				encryption("secrets", goodKMS+","+cbc+","+identity)(r)
				r.write()
				r.chmod(filepath.Join(r.dir, "enc.yaml"), 0o644)
				r.enc = ""
			}},
	}
}
