package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/hsmtest"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
	"github.com/hsm-kms/hsm-kms/test/tokens"
)

func TestMain(m *testing.M) {
	hsmtest.Main(runner{m})
}

type runner struct{ *testing.M }

func (r runner) Run() int { return testworker.Run(r.M) }

// ringOfTool is the label of keys that another program makes here.
const ringOfTool = "made-by-a-tool"

// load is the context of a run over a token; more is more of its configuration.
func load(t *testing.T, token *tokens.Token, more string) *app.Context {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf(`apiVersion: hsm-kms/v1
kind: PluginConfiguration
keyRing: kube-secrets
profile: %s
tokens:
- {name: hsm-a, module: %q, label: %q, pinFile: %q, maxSessions: 4, initArgs: %q}
stateDir: %q
%s
`, token.Profile, token.Module, token.Label, token.PINFile, token.Reserved, filepath.Join(dir, "state"), more)
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := app.Load(path, "")
	if err != nil {
		t.Fatal(err)
	}
	a.Process, a.Warn = &app.Process{}, func(err error) { t.Log(err) }
	return a
}

// report runs the suite over a token; with a ring, over keys that are there.
func report(t *testing.T, token *tokens.Token, ring, more string) *Report {
	t.Helper()
	r, err := Run(t.Context(), load(t, token, more), Options{Program: "test", Ring: ring, Label: func(string) {}, Progress: func(c Check) { t.Log(c.Result, c.Name, c.Detail) }})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.Text(&out); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"PIN:", token.PINFile} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the report has %q:\n%s", secret, out.String())
		}
	}
	return r
}

// conforms wants every check passed, but those.
func conforms(t *testing.T, r *Report, skipped int) {
	t.Helper()
	if !r.Conforms {
		t.Errorf("%+v", r)
	}
	for _, c := range r.Checks {
		if c.Result == Skipped {
			skipped--
		}
	}
	if skipped != 0 || len(r.Checks) < 11 {
		t.Errorf("%d skipped, %+v", skipped, r.Checks)
	}
}

// byTool makes a key with the ring's label as the vendor's tool does.
func byTool(t *testing.T, token *tokens.Token) {
	t.Helper()
	profile, err := envelope.ParseProfile(token.Profile)
	if err != nil {
		t.Fatal(err)
	}
	hsmtest.Subject{
		Common:  hsm.Config{Ring: ringOfTool, Profile: profile, StateDir: t.TempDir()},
		Token:   hsm.TokenConfig{Name: "hsm-a", Module: token.Module, Reserved: token.Reserved, Label: token.Label, PINFile: token.PINFile, CallTimeout: 2 * time.Second},
		MakeKey: token.MakeKey,
	}.AddKey(t, time.Now().Add(-time.Minute))
}

func TestOpencryptoki(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	conforms(t, report(t, tokens.Opencryptoki(t), "", ""), 0)
}

func TestNSS(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	onlyByTool(t, tokens.NSS(t), "allowImportedKeys: true")
}

func TestTPM(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	onlyByTool(t, tokens.TPMWithManager(t), "")
}

// onlyByTool: the token conforms with a key that its vendor's tool makes, and says so where hsm-kms is to make one.
func onlyByTool(t *testing.T, token *tokens.Token, more string) {
	t.Helper()
	if r := report(t, token, "", more); r.Conforms || len(r.Left) > 0 {
		t.Errorf("keys are made where they cannot: %+v", r)
	}
	byTool(t, token)
	conforms(t, report(t, token, ringOfTool, more), 2)
}

// TestSoftHSM: a token that does not do what it must is found out, whatever fails the keys go again, and one that cannot go is
// named.
func TestSoftHSM(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	store := softhsm.ForTest(t, "k8s")
	if err := os.Setenv("SOFTHSM2_CONF", store.Conf()); err != nil {
		t.Fatal(err)
	}
	for _, profile := range []string{"aes-gcm", "hmac-kdf"} {
		conforms(t, report(t, &tokens.Token{Module: store.Module, Label: store.Label, PINFile: store.PINFile, Profile: profile}, "", ""), 0)
	}
	for _, last := range []int{1, 2} {
		interrupted(t, load(t, &tokens.Token{Module: store.Module, Label: store.Label, PINFile: store.PINFile, Profile: "aes-gcm"}, ""), last)
	}
}

// interrupted ends a run after a check: what was not tested is not held against the token.
func interrupted(t *testing.T, a *app.Context, last int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	checks := 0
	r, err := Run(ctx, a, Options{Program: "test", Label: func(string) {}, Progress: func(Check) {
		if checks++; checks == last {
			cancel()
		}
	}})
	if r != nil || !errors.Is(err, context.Canceled) || hint.Of(err) != "run it again" {
		t.Errorf("interrupted after check %d: %+v, %v", last, r, err)
	}
}
