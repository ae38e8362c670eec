package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
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
		f.Interval, f.Recheck, f.Settle, f.StateDir = time.Minute, state.FreshFor, gate.DefaultSettle, "state"
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
