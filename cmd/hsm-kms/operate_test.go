package main

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

// The command that a person runs elsewhere, in another folder, is about the same ring and the same etcd.
func TestRetireFlags(t *testing.T) {
	t.Parallel()
	flags := func(configPath string, change func(*operateFlags)) *operateFlags {
		t.Helper()
		f := &operateFlags{}
		f.Interval, f.Recheck, f.Settle, f.StateDir, f.Engine = time.Minute, state.FreshFor, gate.DefaultSettle, "state", operator.EngineOwn
		f.Endpoints, f.Prefixes = []string{sources.DefaultEndpoint}, []string{sources.DefaultPrefix}
		change(f)
		c := &command{configPath: configPath, errOut: io.Discard}
		if err := c.fillOperate(f, &config.Config{}); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := flags(config.DefaultPath, func(*operateFlags) {}); f.RetireFlags != "" || !filepath.IsAbs(f.StateDir) {
		t.Errorf("by default: %q, %s", f.RetireFlags, f.StateDir)
	}
	f := flags("here/it's.yaml", func(f *operateFlags) {
		f.Endpoints, f.Prefixes, f.Settle = []string{"https://a:1", "https://b:1"}, []string{"/x"}, time.Hour
		f.CAFile, f.CertFile, f.KeyFile, f.Overrides = "ca", "crt", "key", []string{"/events#https://c:1"}
	})
	for _, want := range []string{`/here/it'\''s.yaml'`, "--endpoints 'https://a:1,https://b:1'", "--prefix '/x'", "--cacert 'ca'", "--cert 'crt'", "--key 'key'", "--etcd-servers-overrides '/events#https://c:1'", "--settle '1h0m0s'"} {
		if !strings.Contains(f.RetireFlags, want) {
			t.Errorf("%q lacks %s", f.RetireFlags, want)
		}
	}
	if !strings.HasPrefix(f.RetireFlags, "--config '/") {
		t.Errorf("%q", f.RetireFlags)
	}
}

// One pass exits 1 when a person has to see to something, and 2 when it could not do its work; the state is printed in any case.
func TestPrintPass(t *testing.T) {
	t.Parallel()
	away := errors.New("etcd is away")
	blocked := &operator.Result{Leader: "n1", Status: &operator.Status{State: state.Blocked, Message: "the HSM is away"}}
	for name, c := range map[string]struct {
		result  *operator.Result
		failed  error
		finding bool
		want    error
	}{
		"blocked":        {blocked, nil, true, nil},
		"could not read": {blocked, away, false, away},
		"nothing known":  {nil, away, false, away},
	} {
		var out bytes.Buffer
		cmd := &command{out: &out, errOut: io.Discard, output: "json"}
		err := cmd.printPass(&operateFlags{}, c.result, c.failed)
		if err == nil || app.IsFinding(err) != c.finding || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if printed := strings.Contains(out.String(), "the HSM is away"); printed != (c.result != nil) {
			t.Errorf("%s: %s", name, out.String())
		}
	}
	if err := (&command{out: io.Discard}).printPass(&operateFlags{}, &operator.Result{Leader: "n2"}, nil); err != nil {
		t.Error(err)
	}
}
