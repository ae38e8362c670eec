package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// rig is a set-up of its own: sound, until a test breaks it.
type rig struct {
	t      *testing.T
	dir    string
	tokens []*rigToken
	state  string
	socket string
	audit  string
	http   string
	extra  string   // more lines of configuration
	enc    string   // EncryptionConfiguration; "": none
	args   []string // more flags
	first  []byte   // CKA_ID of the key on the first token

	allowedUIDs string
	changed     time.Time // of the configuration's file
}

// rigToken is a SoftHSM token behind a faulty module.
type rigToken struct {
	name, label, module, pin string
	faults                   *faultp11.Module
	store                    *softhsm.Token
}

// sharedToken is a token with a key, made once and copied for each rig.
type sharedToken struct {
	token *softhsm.Token
	id    []byte
}

func newRig(t *testing.T, shared *sharedToken) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor-") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "run/kms.sock"), audit: filepath.Join(dir, "audit.log"),
		allowedUIDs: fmt.Sprintf("[0, %d]", os.Getuid()), changed: time.Now().Add(-time.Hour)}
	for _, folder := range []string{r.state, filepath.Dir(r.socket)} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	copied, err := shared.token.CopyTo(filepath.Join(dir, "hsm-a"))
	if err != nil {
		t.Fatal(err)
	}
	r.addToken("hsm-a", copied)
	r.first = shared.id
	return r
}

// addToken puts a faulty module before a token and lists it in the configuration.
func (r *rig) addToken(name string, store *softhsm.Token) *rigToken {
	r.t.Helper()
	faults := faultp11.New(r.t, store.Module, faultp11.Options{SoftHSMConf: store.Conf(), AllowBusyFinalize: false})
	tok := &rigToken{name: name, label: store.Label, module: faults.Path(), pin: store.PINFile, faults: faults, store: store}
	r.tokens = append(r.tokens, tok)
	return tok
}

// another adds a second token, empty.
func (r *rig) another() *rigToken {
	r.t.Helper()
	store, err := softhsm.New(r.t.Context(), filepath.Join(r.dir, "hsm-b"), "k8s-b", "")
	if err != nil {
		r.t.Fatal(err)
	}
	return r.addToken("hsm-b", store)
}

func (r *rig) configPath() string { return filepath.Join(r.dir, "config.yaml") }

// write makes the files that the rig is read from.
func (r *rig) write() {
	r.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: hsm-kms/v1\nkind: PluginConfiguration\nkeyRing: kube-secrets\nsocket: {path: %q, allowedUIDs: %s}\n", r.socket, r.allowedUIDs)
	fmt.Fprintf(&b, "stateDir: %q\naudit: {path: %q}\nhttp: {address: %q}\ntokens:\n", r.state, r.audit, r.http)
	for _, t := range r.tokens {
		fmt.Fprintf(&b, "- {name: %s, module: %q, label: %q, pinFile: %q, callTimeout: 1500ms}\n", t.name, t.module, t.label, t.pin)
	}
	b.WriteString(r.extra)
	r.must(os.Chtimes(r.file("config.yaml", b.String()), r.changed, r.changed))
	if r.enc != "" {
		r.args = append(r.args, "--encryption-config", r.file("enc.yaml", r.enc))
	}
}

// file writes a file of the rig, mode 0600, and gives its path.
func (r *rig) file(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) chmod(path string, mode os.FileMode) {
	r.t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		r.t.Fatal(err)
	}
}

// doctor runs the command and gives its findings, exit code and standard error.
func (r *rig) doctor(args ...string) ([]doctor.Finding, int, string) {
	r.t.Helper()
	var out, errOut bytes.Buffer
	all := append([]string{"doctor", "-o", "json", "--config", r.configPath()}, r.args...)
	code := run(r.t.Context(), append(all, args...), &out, &errOut)
	var found []doctor.Finding
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		r.t.Fatalf("exit %d, %v: %s\n%s", code, err, out.String(), errOut.String())
	}
	return found, code, errOut.String()
}

// hsmOf is package hsm's configuration of one token of the rig.
func (r *rig) hsmOf(t *rigToken) (hsm.Config, hsm.TokenConfig) {
	return hsm.Config{Ring: "kube-secrets", Profile: envelope.AESGCM, StateDir: r.state, Log: slog.New(slog.DiscardHandler)},
		hsm.TokenConfig{Name: t.name, Module: t.module, Label: t.label, PINFile: t.pin, MaxSessions: 2, CallTimeout: 5 * time.Second}
}

// generate makes a key of the ring on a token.
func (r *rig) generate(t *rigToken, id []byte) {
	r.t.Helper()
	common, cfg := r.hsmOf(t)
	if _, err := hsm.Generate(r.t.Context(), common, cfg, id); err != nil {
		r.t.Fatal(err)
	}
}

// generateAt makes a key with an activation of its own.
func (r *rig) generateAt(t *rigToken, activation time.Time) {
	r.t.Helper()
	id, err := envelope.NewCKAID(activation)
	if err != nil {
		r.t.Fatal(err)
	}
	r.generate(t, id)
}

// plant makes a secret key of the ring's label past hsm-kms, as a sound one would be but for the changes.
func (r *rig) plant(t *rigToken, changes ...*pkcs11.Attribute) {
	r.t.Helper()
	template := p11test.AESKey("kube-secrets", nil, changes...)
	r.onToken(t, func(ctx *pkcs11.Ctx, s pkcs11.SessionHandle) error {
		_, err := ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template)
		return err
	})
}

// empty destroys every key of the ring on a token.
func (r *rig) empty(t *rigToken) {
	r.t.Helper()
	r.onToken(t, func(ctx *pkcs11.Ctx, s pkcs11.SessionHandle) error {
		if err := ctx.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, "kube-secrets")}); err != nil {
			return err
		}
		found, _, err := ctx.FindObjects(s, 100)
		if err != nil {
			return err
		}
		if err := ctx.FindObjectsFinal(s); err != nil {
			return err
		}
		for _, o := range found {
			if err := ctx.DestroyObject(s, o); err != nil {
				return err
			}
		}
		return nil
	})
}

// onToken does f on a session of the rig's own, logged in, and ends the module again.
func (r *rig) onToken(t *rigToken, f func(*pkcs11.Ctx, pkcs11.SessionHandle) error) {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	defer softhsm.NoForks()()
	ctx := pkcs11.New(t.module)
	must(ctx.Initialize())
	defer func() { must(ctx.Finalize()) }()
	slots, err := ctx.GetSlotList(true)
	must(err)
	for _, slot := range slots {
		info, err := ctx.GetTokenInfo(slot)
		must(err)
		if strings.TrimRight(info.Label, " \x00") != t.label {
			continue
		}
		s, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		must(err)
		pin, err := t.store.PIN()
		must(err)
		must(ctx.Login(s, pkcs11.CKU_USER, pin))
		must(f(ctx, s))
		return
	}
	r.t.Fatalf("no token %s", t.label)
}

// currentKey is the key_id of the current key, as keys list gives it.
func (r *rig) currentKey() string {
	r.t.Helper()
	r.write()
	var out, errOut bytes.Buffer
	if code := run(r.t.Context(), []string{"keys", "list", "-o", "json", "--config", r.configPath()}, &out, &errOut); code != 0 {
		r.t.Fatalf("keys list: exit %d: %s", code, errOut.String())
	}
	var keys []keyJSON
	if err := json.Unmarshal(out.Bytes(), &keys); err != nil || len(keys) == 0 {
		r.t.Fatalf("keys list: %v: %s", err, out.String())
	}
	return keys[0].KeyID
}

// fakePlugin answers Status on the rig's socket.
type fakePlugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	healthz, keyID string
}

func (f *fakePlugin) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: f.healthz, KeyId: f.keyID}, nil
}

// serve runs a plugin that gives these answers until the test ends.
func (r *rig) serve(healthz, keyID string) {
	r.t.Helper()
	l, err := (&net.ListenConfig{}).Listen(r.t.Context(), "unix", r.socket)
	if err != nil {
		r.t.Fatal(err)
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, &fakePlugin{healthz: healthz, keyID: keyID})
	go func() { _ = server.Serve(l) }() // ends with Stop
	r.t.Cleanup(server.Stop)
}
