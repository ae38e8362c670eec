package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/evidence"
)

// A key that was current when it was asked for, and is not at the end of the reading, is no proof for the current key.
func TestRequireCurrentWhileTheRingChanges(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	r.tokens = r.tokens[:1] // a new key waits for no other
	r.write()
	report := func() (evidence.Report, string, int) {
		out, errOut, code := r.hsmkms("etcd", "report", "--require-key", "current", "--endpoints", r.etcd.url, "-o", "json")
		var report evidence.Report
		r.must(json.Unmarshal([]byte(out), &report))
		return report, errOut, code
	}
	rotate := func(in string) func() {
		return func() {
			if _, errOut, code := r.hsmkms("keys", "rotate", "--another", "--activate-in", in); code != 0 {
				t.Errorf("keys rotate: exit %d: %s", code, errOut)
			}
		}
	}
	before, errOut, code := report()
	if code != 0 || !before.Required.Current {
		t.Fatalf("exit %d: %+v %s", code, before.Findings, errOut)
	}
	r.etcd.afterReading = rotate("0s")
	got, errOut, code := report()
	if code != 1 || got.Required.Current || len(got.Findings) != 1 || !strings.Contains(got.Findings[0].Problem, before.Required.KeyID+" is not the current key any more: ") {
		t.Errorf("a key that is current: exit %d, %+v: %s", code, got.Findings, errOut)
	}
	r.etcd.write("/registry/secrets/shop/one", nil)
	r.must(r.etcd.put("secrets/shop/two", r.keys()[2].KeyID))
	r.etcd.afterReading = rotate("1h")
	if got, errOut, code := report(); code != 0 || len(got.Required.Newer) != 1 {
		t.Errorf("a key that is pending: exit %d, newer %+v: %s", code, got.Required.Newer, errOut)
	}
}

// Of an object that two etcds have, nobody is given the one that the API server does not read.
func TestGetFromTwoEtcds(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	other, stop, err := newFakeEtcd()
	r.must(err)
	t.Cleanup(stop)
	other.cluster = 0xfeed
	r.etcd.write("/registry/configmaps/shop/both", []byte(`{"apiVersion":"v1","kind":"ConfigMap","data":{"from":"main"}}`))
	other.write("/registry/configmaps/shop/both", []byte(`{"apiVersion":"v1","kind":"ConfigMap","data":{"from":"other"}}`))
	other.write("/registry/configmaps/shop/there", []byte(`{"apiVersion":"v1","kind":"ConfigMap","data":{"from":"other"}}`))
	get := func(name string, args ...string) (string, string, int) {
		args = append([]string{"etcd", "get", "/registry/configmaps/shop/" + name, "--break-glass", "test", "-o", "json", "--allow-terminal", "--allow-readable-file", "--endpoints", r.etcd.url}, args...)
		return r.hsmkms(args...)
	}
	overrides := []string{"--etcd-servers-overrides", "/configmaps#" + other.url}
	if out, errOut, code := get("both", overrides...); code != 1 || out != "" || !strings.Contains(errOut, "more than one of these etcds has it") {
		t.Errorf("both: exit %d, %q, %s", code, out, errOut)
	}
	if out, errOut, code := get("there", overrides...); code != 0 || !strings.Contains(out, `"from":"other"`) {
		t.Errorf("there: exit %d, %q, %s", code, out, errOut)
	}
	if out, errOut, code := get("both"); code != 0 || !strings.Contains(out, `"from":"main"`) {
		t.Errorf("one etcd: exit %d, %q, %s", code, out, errOut)
	}
}

// Texts of others reach no terminal as they are: an etcd's error, a key in JSON.
func TestHarmless(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain\ttext\n": "plain\ttext\n", "é, …": "é, …", "\x1b[31m": `\u001b[31m`, "\u009b31m": `\u009b31m`, "\u202eabc": `\u202eabc`, "\x7f": `\u007f`, "\r": `\u000d`,
		"\xff": "\ufffd", "\U000e0001": `\udb40\udc01`,
	} {
		if got := harmless(text); got != want {
			t.Errorf("harmless(%q) = %q, want %q", text, got, want)
		}
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(codes.InvalidArgument, "no \x1b[2J\u009b31m")
	}))
	go func() { _ = server.Serve(lis) }() // ends with Stop
	t.Cleanup(server.Stop)
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"etcd", "report", "--endpoints", "http://" + lis.Addr().String()}, &out, &errOut); code != 2 || !strings.Contains(errOut.String(), `no \u001b[2J\u009b31m`) {
		t.Errorf("exit %d: %q", code, errOut.String())
	}
	key := "/registry/secrets/\u009b31m\u202e\U000e0001"
	c := &command{out: &out}
	if err := c.json(map[string]string{"key": key}); err != nil {
		t.Fatal(err)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["key"] != key || harmless(out.String()) != out.String() {
		t.Errorf("%q, %v", fmt.Sprint(back), err)
	}
}
