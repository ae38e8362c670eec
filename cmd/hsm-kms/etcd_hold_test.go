package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

// putHeld writes a Secret as an API server does while its plugin is on hold under the key, and stores it under the text.
func (r *retireRig) putHeld(path, key, text string) {
	r.t.Helper()
	common, token := r.hsmOf(r.tokens[0])
	set := hsm.Open(common, []hsm.TokenConfig{token})
	defer set.Start(r.t.Context())()
	for _, err := range set.Connected(r.t.Context()) {
		r.must(err)
	}
	id, err := envelope.ParseKeyID(key)
	r.must(err)
	day := envelope.DayOf(time.Now())
	hold, err := envelope.DeriveHoldKey(r.t.Context(), set, common.Profile, id, day)
	r.must(err)
	dek := &kubestore.DEK{Provider: "hsm-kms", KeyID: text, Plain: make([]byte, 32)}
	dek.Wrapped, err = envelope.SealHold(&hold, id, day, dek.Plain)
	r.must(err)
	secret, err := kubestore.Secret("shop", "db", []byte("a secret of the hold"))
	r.must(err)
	value, err := dek.Value("/registry/"+path, secret)
	r.must(err)
	r.etcd.write("/registry/"+path, value)
}

// Objects that were written in an outage hold are shown as such, are not under the key that is required, and open with the HSM alone,
// on a machine that has no hold. With /hold put on or taken off they open for nobody.
func TestHoldInEtcd(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	r.etcd.mu.Lock()
	r.etcd.history = nil // what no HSM can open
	r.etcd.mu.Unlock()
	const path = "secrets/shop/held"
	r.putHeld(path, r.new, r.new+"/hold")
	etcd := []string{"--endpoints", r.etcd.url}
	do := func(args ...string) (string, string, int) { return r.hsmkms(append(args, etcd...)...) }
	for _, required := range []string{"current", r.new} {
		out, errOut, code := do("etcd", "report", "--require-key", required, "-o", "json")
		var report evidence.Report
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err, errOut)
		}
		if code != 1 || len(report.Findings) == 0 || report.Findings[0] != (evidence.Finding{Resource: "secrets", Problem: "written in an outage hold, under " + r.new + "/hold", Objects: 1}) ||
			report.Resources[0].Keys[0].KeyID != r.new+"/hold" {
			t.Errorf("etcd report --require-key %s: exit %d: %s%s", required, code, out, errOut)
		}
	}
	if _, errOut, code := do("etcd", "report", "--require-key", r.new+"/hold"); code != 2 || !strings.Contains(errOut, "it ends in /hold, and names an outage hold, not a key") {
		t.Errorf("requiring a hold: exit %d: %s", code, errOut)
	}
	if out, errOut, code := do("etcd", "verify", "-o", "json"); code != 0 || !strings.Contains(out, `"keyID": "`+r.new+`/hold"`) || !strings.Contains(out, `"verified": 1`) {
		t.Errorf("etcd verify: exit %d: %s%s", code, out, errOut)
	}
	if out, errOut, code := do("etcd", "get", "/registry/"+path, "--break-glass", "a test"); code != 0 || !strings.Contains(out, "name: db") {
		t.Errorf("etcd get: exit %d: %s%s", code, out, errOut)
	}
	// The ring that its key_id names may be one that is only read.
	token := r.tokens[0]
	text, err := os.ReadFile(r.configPath())
	r.must(err)
	r.file("config.yaml", strings.Replace(string(text), "keyRing: kube-secrets", "keyRing: kube-new", 1)+
		fmt.Sprintf("readRings: [{keyRing: kube-secrets, tokens: [{name: old-a, module: %q, label: %q, pinFile: %q}]}]\n", token.module, token.label, token.pin))
	if out, errOut, code := do("etcd", "get", "/registry/"+path, "--break-glass", "a test"); code != 0 || !strings.Contains(out, "name: db") {
		t.Errorf("etcd get of a read ring: exit %d: %s%s", code, out, errOut)
	}
	r.file("config.yaml", string(text))
	r.putHeld("secrets/shop/taken", r.new, r.new)
	r.putHeld("secrets/shop/other", r.new, r.old+"/hold")
	out, errOut, code := do("etcd", "verify", "-o", "json")
	if code != 1 || strings.Count(out, envelope.ErrMalformed.Error()) != 1 || strings.Count(out, envelope.ErrUnauthentic.Error()) != 1 || !strings.Contains(out, `"verified": 1`) {
		t.Errorf("changed key_ids: exit %d: %s%s", code, out, errOut)
	}
}

// An object that was written in a hold under a key needs that key, wherever it is.
func TestRetireCountsHolds(t *testing.T) {
	t.Parallel()
	t.Run("in etcd now", func(t *testing.T) {
		t.Parallel()
		r := newRetireRig(t)
		r.putHeld("secrets/shop/held", r.old, r.old+"/hold")
		r.checkRefusal("etcd now: 1 object under " + r.old + " (secrets 1, of which 1 under " + r.old + "/hold)")
	})
	t.Run("in a snapshot", func(t *testing.T) {
		t.Parallel()
		r := newRetireRig(t)
		r.putHeld("secrets/shop/held", r.old, r.old+"/hold")
		snapshot := filepath.Join(r.dir, "backup.db")
		r.must(r.etcd.save(snapshot))
		r.must(r.etcd.put("secrets/shop/held", r.new))
		r.makeReport()
		out, errOut, code := r.hsmkms(append(r.args(), "--snapshot", snapshot)...)
		if code != 1 || !strings.Contains(out, "of which 1 under "+r.old+"/hold") || len(r.holders()) != 2 {
			t.Errorf("exit %d: %s%s", code, out, errOut)
		}
	})
	t.Run("named by the plugin", func(t *testing.T) {
		t.Parallel()
		r := newRetireRig(t)
		r.serve("ok", r.old+"/hold")
		r.checkRefusal("the plugin of this machine names " + r.old + "/hold as the key to write under")
	})
	t.Run("of this configuration", func(t *testing.T) {
		t.Parallel()
		r := newRetireRig(t)
		text, err := os.ReadFile(r.configPath())
		r.must(err)
		r.file(filepath.Base(r.configPath()), string(text)+"outageHold: 2h\n")
		r.checkRefusal("ago, and 26h0m0s (--settle) must lie between it and now")
	})
	t.Run("published by another node", func(t *testing.T) {
		t.Parallel()
		r := newRetireRig(t)
		r.etcd.write("/registry/leases/hsm-kms/node-b", []byte(`{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","metadata":{"annotations":{"hsm-kms.io/plugin":"{\"hold\":{\"limit\":3600000000000}}"}}}`))
		r.checkRefusal("ago, and 25h0m0s (--settle) must lie between it and now")
	})
}

// A plugin that names the hold of the current key disagrees with nobody.
func TestDoctorOfAPluginOnHold(t *testing.T) {
	t.Parallel()
	r := newRig(t, makeShared(t))
	r.serve("ok", r.currentKey()+"/hold")
	r.write()
	found, _, errOut := r.doctor()
	i := slices.IndexFunc(found, func(f doctor.Finding) bool { return f.Check == "plugin" })
	if i < 0 || found[i].Result != doctor.Pass || !strings.HasSuffix(found[i].Detail, "uses the ring's current key") {
		t.Errorf("%+v, %s", found, errOut)
	}
}
