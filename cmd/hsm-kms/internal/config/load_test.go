package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// minimal sets no more than a file must. Tests add lines before and after, so each mistake has a line of its own.
const minimal = `apiVersion: hsm-kms/v1
kind: PluginConfiguration
keyRing: kube-secrets
tokens:
  - name: hsm-a
    module: /usr/lib/softhsm/libsofthsm2.so
    label: k8s
    pinFile: /etc/hsm-kms/pin
`

// minimalConfig is what minimal means.
func minimalConfig() *config.Config {
	want := config.Default()
	want.KeyRing = "kube-secrets"
	token := config.Token{Name: "hsm-a", Module: "/usr/lib/softhsm/libsofthsm2.so", Label: "k8s", Login: "pin", PINFile: "/etc/hsm-kms/pin", MaxSessions: 8}
	if err := token.CallTimeout.UnmarshalText([]byte("2s")); err != nil {
		panic(err)
	}
	if err := token.ConnectTimeout.UnmarshalText([]byte("30s")); err != nil {
		panic(err)
	}
	want.Tokens = []config.Token{token}
	return want
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("c.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got := parse(t, minimal)
	if diff := cmp.Diff(minimalConfig(), got); diff != "" {
		t.Errorf("minimal file (-want +got):\n%s", diff)
	}
	text, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/defaults.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden), string(text)); diff != "" {
		t.Errorf("testdata/defaults.yaml (-want +got):\n%s", diff)
	}
	if w := got.Warnings(); len(w) != 0 {
		t.Errorf("the defaults warn: %q", w)
	}
}

func TestEveryFieldIsRead(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg := parse(t, string(text))
	if got := cfg.Socket.Mode.Perm(); got != 0o660 {
		t.Errorf("mode = %v", got)
	}
	if got := cfg.Audit.MaxBytes(); got != 7_000_000 {
		t.Errorf("MaxBytes = %d", got)
	}
	if len(cfg.Tokens) != 3 || *cfg.Tokens[2].Slot != 0 || cfg.Tokens[1].MaxSessions != 8 || cfg.Tokens[0].MaxSessions != 1024 {
		t.Errorf("tokens = %+v", cfg.Tokens)
	}
	out, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(out)); diff != "" {
		t.Errorf("full.yaml written again (-file +written):\n%s", diff)
	}
}

func TestAcceptedForms(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"socket: {mode: 0600}", `socket: {mode: "660", group: "0"}`, "writeContinuation: 0s", "http: {address: ''}",
		"http: {address: '[::1]:0'}", "audit: {path: ''}", "allowImportedKeys: true", "refuseKeys: [a, b]",
	} {
		if _, err := config.Parse("c.yaml", []byte(minimal+line+"\n")); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if cfg := parse(t, strings.Replace(minimal, "/etc/hsm-kms/pin", "pin", 1)); cfg.Tokens[0].PINFile != "pin" {
		t.Errorf("pinFile = %q", cfg.Tokens[0].PINFile)
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	_, err := config.Parse("dir/c.yaml", []byte(strings.NewReplacer(
		"keyRing: kube-secrets", "keyRng: kube-secrets", "label: k8s", "callTimeout: 3s").Replace(minimal)+
		"refreshInterval: 30\nhttp:\nlogging: {level: loud, colour: red}\n"))
	if err == nil {
		t.Fatal("accepted")
	}
	want := []string{
		"dir/c.yaml:1: keyRing: is missing (hint: name the ring",
		"dir/c.yaml:3: keyRng: unknown field (hint: fields here are apiVersion, kind,",
		"dir/c.yaml:5: tokens[0]: none of label, serial and slot ",
		"dir/c.yaml:7: tokens[0].callTimeout: is 3s, and kube-apiserver gives up after 3s (hint: ",
		`dir/c.yaml:9: refreshInterval: "30" is not a length of time (hint: write a number with its unit`,
		"dir/c.yaml:10: http: has no value (hint: ",
		"dir/c.yaml:11: logging.colour: unknown field (hint: fields here are level, format)",
		`dir/c.yaml:11: logging.level: "loud" is not debug or info or warn or error (hint: `,
	}
	got := strings.Split(err.Error(), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d:\n%v", len(got), len(want), err)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("line %d:\n got %s\nwant %s...", i, got[i], want[i])
		}
	}
	if hint.Of(err) == "" {
		t.Error("no hint for the whole")
	}
	if p, ok := errors.AsType[*config.Problem](err); !ok || p.Line != 1 || p.Field != "keyRing" {
		t.Errorf("first problem = %+v", p)
	}
}

func TestManyMistakesAreCutShort(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&text, "f%d: 1\n", i)
	}
	_, err := config.Parse("c.yaml", []byte(text.String()))
	if lines := strings.Split(fmt.Sprint(err), "\n"); len(lines) != 51 || !strings.Contains(lines[0], "has more mistakes than these 50") {
		t.Errorf("%d lines, the first %q", len(lines), lines[0])
	}
}

func TestLoadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", minimal, 0o644)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{good, link} {
		cfg, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(minimalConfig(), cfg); diff != "" {
			t.Error(diff)
		}
	}
	for name, tc := range map[string]struct{ path, text, hint string }{
		"absent":          {dir + "/none", "no such file", "--config"},
		"folder":          {dir, dir + ": is not a regular file", "YAML"},
		"group may write": {write("group", minimal, 0o620), "mode 0620 lets others write it", "chmod go-w"},
		"world may write": {write("world", minimal, 0o602), "mode 0602 lets others write it", "chmod go-w"},
		"too large":       {write("large", minimal+strings.Repeat("#\n", config.MaxFileSize/2), 0o600), "is larger than 65536 bytes", "correct"},
		"not YAML":        {write("bad", minimal+"a: b: c\n", 0o600), "/bad:9: is not valid YAML", "correct"},
		"foreign":         {foreign(t, write("foreign", minimal, 0o600)), "belongs to uid 12345", "chown root"},
	} {
		if tc.path == "" {
			continue
		}
		_, err := config.Load(tc.path)
		if err == nil || !strings.Contains(err.Error(), tc.text) || !strings.Contains(hint.Of(err), tc.hint) {
			t.Errorf("%s: %v (hint %q), want %q (hint %q)", name, err, hint.Of(err), tc.text, tc.hint)
		}
	}
	if _, err := config.Load(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v is not fs.ErrNotExist", err)
	}
}

// foreign gives the file to somebody else and returns path, or "" where we may not.
func foreign(t *testing.T, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		return ""
	}
	if err := os.Chown(path, 12345, 0); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"http: {address: '0.0.0.0:9808'}":    "http.address 0.0.0.0:9808 is not loopback",
		"http: {address: ':9808'}":           "http.address :9808 is not loopback",
		"http: {address: 'node.local:9808'}": "is not loopback",
		"http: {address: 'localhost:9808'}":  "",
		"http: {address: '127.9.9.9:1'}":     "",
		"audit: {path: ''}":                  "audit.path is empty",
		"allowImportedKeys: true":            "allowImportedKeys",
		"allowUnsafeModulePath: true":        "allowUnsafeModulePath",
		"refuseKeys: [a]":                    "refuseKeys names 1: ",
		"socket: {mode: '0660'}":             "socket.mode 0660 without socket.group",
	} {
		got := parse(t, minimal+line+"\n").Warnings()
		if want == "" && len(got) != 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	placeholder := strings.Replace(minimal, "kube-secrets", config.PlaceholderRing, 1)
	if got := parse(t, placeholder).Warnings(); len(got) != 1 || !strings.Contains(got[0], "a ring belongs to one cluster") {
		t.Errorf("the placeholder: %q", got)
	}
}

func TestUIDs(t *testing.T) {
	t.Parallel()
	own := uint32(os.Geteuid())
	want := []uint32{0, own}
	if own == 0 {
		want = want[:1]
	}
	if got := parse(t, minimal).Socket.UIDs(); !cmp.Equal(got, want) {
		t.Errorf("default = %v, want %v", got, want)
	}
	if got := parse(t, minimal+"socket: {allowedUIDs: [7, 5, 7]}\n").Socket.UIDs(); !cmp.Equal(got, []uint32{5, 7}) {
		t.Errorf("a given list is not exact: %v", got)
	}
}

func TestGID(t *testing.T) {
	t.Parallel()
	for group, want := range map[string]string{
		"": "0 false <nil>", "4711": "4711 true <nil>", "root": "0 true <nil>",
		"no-such-group": "groupadd --system no-such-group",
	} {
		if group == "root" {
			if _, err := os.Stat("/etc/group"); err != nil {
				continue
			}
		}
		gid, ok, err := (&config.Socket{Group: group}).GID()
		if got := fmt.Sprint(gid, " ", ok, " ", err, hint.Of(err)); !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", group, got, want)
		}
	}
}

// Who may connect by allowedUIDs and cannot by the file's owner, group and mode.
func TestShutOut(t *testing.T) {
	t.Parallel()
	const unknown = 4_000_000_001 // no user of this machine
	absent := func(string) (ownedfile.Info, bool, error) { return ownedfile.Info{}, false, fs.ErrNotExist }
	there := func(uid, gid uint32, perm fs.FileMode) func(string) (ownedfile.Info, bool, error) {
		return func(string) (ownedfile.Info, bool, error) {
			return ownedfile.Info{UID: uid, GID: gid, Perm: perm}, false, nil
		}
	}
	own := uint32(os.Geteuid())
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	id, err := strconv.ParseUint(nobody.Uid, 10, 32)
	group, err2 := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	uid, gid := uint32(id), uint32(group)
	for name, tc := range map[string]struct {
		socket config.Socket
		lstat  func(string) (ownedfile.Info, bool, error)
		want   []uint32
	}{
		"default":                   {config.Socket{Mode: 0o600}, absent, nil},
		"another user":              {config.Socket{Mode: 0o600, AllowedUIDs: []uint32{0, own, uid}}, absent, []uint32{uid}},
		"a user who is not known":   {config.Socket{Mode: 0o600, AllowedUIDs: []uint32{0, unknown}}, absent, []uint32{unknown}},
		"its group":                 {config.Socket{Mode: 0o660, Group: nobody.Gid, AllowedUIDs: []uint32{uid}}, absent, nil},
		"another group":             {config.Socket{Mode: 0o660, Group: "4000000002", AllowedUIDs: []uint32{uid}}, absent, []uint32{uid}},
		"a group, user not known":   {config.Socket{Mode: 0o660, Group: "4000000002", AllowedUIDs: []uint32{unknown}}, absent, nil},
		"the file's owner":          {config.Socket{Mode: 0o600, AllowedUIDs: []uint32{uid}}, there(uid, 0, 0o600), nil},
		"the file's group":          {config.Socket{Mode: 0o600, AllowedUIDs: []uint32{uid}}, there(0, gid, 0o660), nil},
		"the file, and not our own": {config.Socket{Mode: 0o660, Group: nobody.Gid, AllowedUIDs: []uint32{uid}}, there(0, gid, 0o600), []uint32{uid}},
	} {
		if got := tc.socket.ShutOut(tc.lstat); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
