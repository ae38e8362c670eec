package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestManifests: what is printed is filled in from the configuration, file by file; mistakes have a hint.
func TestManifests(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := `apiVersion: hsm-kms/v1
kind: PluginConfiguration
socket: {path: /run/elsewhere/kms.sock, mode: "0660", group: "1234"}
keyRing: kube-secrets
tokens: [{name: hsm-a, module: /opt/vendor/lib/libvendor.so, label: kms, pinFile: hsm-pin}]
http: {address: 127.0.0.1:1234}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says []string // on standard output, or on standard error when code is not 0
	}{
		{[]string{"encryption-config"}, 0, []string{`endpoint: "unix:///run/elsewhere/kms.sock"`, "- identity: {}"}},
		{[]string{"encryption-config", "--resources", "secrets,configmaps"}, 0, []string{`- "configmaps"`}},
		{[]string{"encryption-config", "--from", "other"}, 2, []string{"hint: add --from-endpoint"}},
		{[]string{"encryption-config", "--plaintext", "--step", "2", "--name", "hsm-b"}, 0, []string{"Step 2 of 2", `name: "hsm-b"`}},
		{[]string{"encryption-config", "--step", "2"}, 2, []string{"reads nothing that was written before", "hint: add what the cluster holds today"}},
		{[]string{"systemd", "--output", "/nonexistent/file"}, 2, []string{"hint: add --file with one of hsm-kms.service"}},
		{[]string{"static-pod"}, 2, []string{"systemd credential", "hint: give pinFile an absolute path"}},
		{[]string{"systemd"}, 0, []string{"# file: /etc/systemd/system/hsm-kms.service\n", "--config " + path, "LoadCredential=hsm-pin:", "SocketGroup=1234\n", "SocketMode=0660\n"}},
		{[]string{"systemd", "--file", "hsm-kms.socket"}, 0, []string{"ListenStream=/run/elsewhere/kms.sock\n"}},
		{[]string{"systemd", "--file", "nonsense"}, 2, []string{"hint: give --file one of hsm-kms.service, hsm-kms.socket"}},
		{[]string{"rotate-timer"}, 0, []string{"# file: /etc/systemd/system/hsm-kms-rotate.service\n", "keys rotate --if-older-than 2160h --config " + path, "LoadCredential=hsm-pin:", "# file: /etc/systemd/system/hsm-kms-rotate.timer\n"}},
		{[]string{"rotate-timer", "--file", "hsm-kms-rotate.timer"}, 0, []string{"OnCalendar=daily\n"}},
		{[]string{"operator", "--resources", "secrets,widgets.example.com"}, 0, []string{"# file: keyring-crd.yaml\n", "# file: operate-rbac.yaml\n", `{apiGroups: ["example.com"], resources: ["widgets"], verbs: [patch]}`, " operate --config " + path, "--resources secrets,widgets.example.com\n", "InaccessiblePaths=-/etc/hsm-kms/hsm-pin\n"}},
		{[]string{"operator", "--resources", "Secret"}, 2, []string{"--resources", "hint: did you mean secrets?"}},
		{[]string{"operator-pod"}, 2, []string{"hint: name the one of the plugin's pod with --image"}},
		{[]string{"kubeadm", "--path", "/etc/x/enc.yaml"}, 0, []string{"--encryption-provider-config=/etc/x/enc.yaml"}},
		{[]string{"kind"}, 0, []string{"ARG LABEL=\"kms\"", "kind: Cluster", "--config /etc/hsm-kms/config.yaml", "kind: EncryptionConfiguration"}},
		{[]string{"nonsense"}, 2, []string{"unknown command", "hint: see hsm-kms manifests -h"}},
	} {
		var out, errOut bytes.Buffer
		args := append([]string{"manifests"}, c.args...)
		if c.args[0] != "nonsense" {
			args = append(args, "--config", path)
		}
		code := run(t.Context(), args, &out, &errOut)
		said := out.String()
		if c.code != 0 {
			said = errOut.String()
		}
		for _, want := range c.says {
			if code != c.code || !strings.Contains(said, want) {
				t.Errorf("%v: exit code %d, want %d and %q in:\n%s\n%s", c.args, code, c.code, want, out.String(), errOut.String())
			}
		}
	}
	for _, name := range []string{"dockerfile", "alerts", "dashboard"} { // they have nothing of the configuration in them
		var out, errOut bytes.Buffer
		if code := run(t.Context(), []string{"manifests", name, "--config", "/absent"}, &out, &errOut); code != 0 || out.Len() == 0 {
			t.Errorf("%s: exit code %d: %s", name, code, errOut.String())
		}
	}
}

// TestLinksOf: a chain of links, one of a folder among them, as Debian's SoftHSM and vendors' packages have it.
func TestLinksOf(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.MkdirAll(at("real/lib"), 0o755), os.WriteFile(at("real/lib/m.so.1"), nil, 0o600), os.MkdirAll(at("links"), 0o755),
		os.Symlink("real", at("alias")), os.Symlink("../alias/lib/m.so.1", at("links/m.so")), os.Symlink(at("links/m.so"), at("m.so")), os.Symlink("loop", at("loop")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for module, want := range map[string][]string{
		"m.so":            {at("links/m.so"), at("alias/lib/m.so.1"), at("real/lib/m.so.1")},
		"links/m.so":      {at("alias/lib/m.so.1"), at("real/lib/m.so.1")},
		"real/lib/m.so.1": nil, "absent": nil,
	} {
		if got := linksOf(at(module)); !slices.Equal(got, want) {
			t.Errorf("%s leads to %q, want %q", module, got, want)
		}
	}
	if got := linksOf(at("loop")); len(got) > 40 {
		t.Errorf("a loop has %d links", len(got))
	}
}
