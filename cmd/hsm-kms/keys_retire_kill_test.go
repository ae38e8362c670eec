package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// retireRig is a ring of two keys on two tokens that hold the same, an etcd in which everything is under the newer one,
// and a report that says so.
type retireRig struct {
	*rig
	etcd     *fakeEtcd
	old, new string // key_ids
	report   string // file
	sole     bool   // somebody says that no other cluster uses the ring
	ignores  string // a signal that commands are started with as ignored: INT
}

func newRetireRig(t *testing.T) *retireRig {
	t.Helper()
	if testing.Short() {
		t.Skip("make test runs it")
	}
	r := &retireRig{sole: true, rig: newRig(t, &sharedToken{token: softhsm.ForTest(t, "k8s")})}
	now := time.Now()
	r.generateAt(r.tokens[0], now.Add(-74*time.Hour))
	r.generateAt(r.tokens[0], now.Add(-73*time.Hour))
	other, err := r.tokens[0].store.CopyTo(filepath.Join(r.dir, "hsm-b"))
	if err != nil {
		t.Fatal(err)
	}
	r.addToken("hsm-b", other)
	r.write()
	keys := r.keys()
	r.old, r.new = keys[0].KeyID, keys[1].KeyID
	etcd, stop, err := newFakeEtcd()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	r.etcd = etcd
	r.must(etcd.put("secrets/shop/one", r.new))
	r.makeReport()
	return r
}

func (r *retireRig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// hsmkms runs a command in this process.
func (r *retireRig) hsmkms(args ...string) (out, errOut string, code int) {
	r.t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(r.t.Context(), append(args, "--config", r.configPath()), &stdout, &stderr)
	return stdout.String(), stderr.String(), code
}

func (r *retireRig) keys() []keyJSON {
	r.t.Helper()
	out, errOut, code := r.hsmkms("keys", "list", "-o", "json")
	var keys []keyJSON
	if err := json.Unmarshal([]byte(out), &keys); err != nil {
		r.t.Fatalf("keys list: exit %d, %v: %s", code, err, errOut)
	}
	return keys
}

// holders are the tokens that hold the old key.
func (r *retireRig) holders() []string {
	r.t.Helper()
	for _, k := range r.keys() {
		if k.KeyID == r.old {
			return k.Tokens
		}
	}
	return nil
}

func (r *retireRig) args() []string {
	args := []string{"keys", "retire", r.old, "--evidence", r.report, "--settle", "0s", "--endpoints", r.etcd.url, "--yes", "-o", "json"}
	if r.sole {
		args = append(args, "--sole-cluster")
	}
	return args
}

// retire runs the command to its end.
func (r *retireRig) retire() (said retiredJSON, errOut string, code int) {
	r.t.Helper()
	out, errOut, code := r.hsmkms(r.args()...)
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		r.t.Fatalf("exit %d, %v: %s%s", code, err, out, errOut)
	}
	return said, errOut, code
}

// killIn starts the command as a process of its own and kills it as soon as it hangs in C_DestroyObject on the token.
func (r *retireRig) killIn(token *rigToken) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], append(r.args(), "--config", r.configPath())...) //nolint:gosec // ourselves, as hsm-kms
	cmd.Args[0] = "hsm-kms"
	cmd.Env = append(os.Environ(), "TRANSCRIPT="+filepath.Join(r.dir, "transcript"), "GORACE=atexit_sleep_ms=0")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	r.must(cmd.Start())
	err := token.faults.WaitHung(ctx, "C_DestroyObject", 1)
	_ = cmd.Process.Kill()
	for _, other := range r.tokens {
		other.faults.Kill() // a worker would finish the call first
	}
	_ = cmd.Wait() // killed
	for _, other := range r.tokens {
		r.must(other.faults.WaitAlone(ctx))
	}
	if err != nil {
		r.t.Fatalf("%v: %s", err, said.String())
	}
	token.faults.Clear()
}

// Killed between two tokens, the same command goes on with the other.
func TestRetireKilledBetweenTokens(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	second := r.tokens[1]
	second.faults.Hang("C_DestroyObject")
	r.killIn(second)
	if held := r.holders(); !slices.Equal(held, []string{"hsm-b"}) {
		t.Fatalf("after the kill the key is on %v", held)
	}
	said, errOut, code := r.retire()
	if code != 0 || !slices.Equal(said.Destroyed, []string{"hsm-b"}) {
		t.Errorf("again: exit %d, %+v: %s", code, said, errOut)
	}
	r.checkGone()
}

// Killed after the last token and before the end was on record, the same command says so and writes the end.
func TestRetireKilledBeforeItsEnd(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	second := r.tokens[1]
	second.faults.HangAfter("C_DestroyObject")
	r.killIn(second)
	if held := r.holders(); held != nil {
		t.Fatalf("after the kill the key is on %v", held)
	}
	out, errOut, code := r.hsmkms("keys", "retire", r.old, "--dry-run")
	if code != 0 || !strings.Contains(out, "Its destruction was begun before, and is complete.") {
		t.Errorf("a dry run: exit %d: %s%s", code, out, errOut)
	}
	said, errOut, code := r.retire()
	if code != 0 || len(said.Destroyed) != 0 || len(said.Refusals) != 0 {
		t.Errorf("again: exit %d, %+v: %s", code, said, errOut)
	}
	r.checkGone()
}

// checkGone: the key is on no token, the other is, the trail holds, and a further run says when it was destroyed.
func (r *retireRig) checkGone() {
	r.t.Helper()
	keys := r.keys()
	if len(keys) != 1 || keys[0].KeyID != r.new || !slices.Equal(keys[0].Tokens, []string{"hsm-a", "hsm-b"}) {
		r.t.Errorf("the ring is %+v", keys)
	}
	if result, err := audit.Verify("", audit.Beside(r.audit, "keys-retire")); err != nil || !result.OK {
		r.t.Errorf("the trail: %+v, %v", result, err)
	}
	if said, errOut, code := r.retire(); code != 1 || len(said.Refusals) != 1 || !strings.Contains(errOut, "it was destroyed at") {
		r.t.Errorf("a further run: exit %d, %+v: %s", code, said, errOut)
	}
}

// The plugin of this machine counts: one that would write under the key, or that does not say under which.
func TestRetireAsksThePlugin(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		plugin *fakePlugin // its keyID: "old" or "new"
		want   string
	}{
		"it names the key":          {&fakePlugin{healthz: "ok", keyID: "old"}, "the plugin of this machine names "},
		"it names it and is not ok": {&fakePlugin{healthz: "HSM unavailable", keyID: "old"}, "the plugin of this machine names "},
		"it names the current one":  {&fakePlugin{healthz: "ok", keyID: "new"}, ""},
		"it gives an error":         {nil, "it is not clear which key the plugin of this machine writes under"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRetireRig(t)
			r.serveStatus(test.plugin)
			r.checkRefusal(test.want)
		})
	}
}

// serveStatus runs a plugin on the rig's socket; nil: one that answers with errors alone.
func (r *retireRig) serveStatus(p *fakePlugin) {
	r.t.Helper()
	if p != nil {
		r.serve(p.healthz, map[string]string{"old": r.old, "new": r.new}[p.keyID])
		return
	}
	lis, err := (&net.ListenConfig{}).Listen(r.t.Context(), "unix", r.socket)
	r.must(err)
	server := grpc.NewServer() // of no service
	go func() { _ = server.Serve(lis) }()
	r.t.Cleanup(server.Stop)
}

// A copy of the token that the current key has not reached belongs to a node that still writes under an older one.
func TestRetireWantsTheCurrentKeyOnEveryToken(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	r.generateAt(r.tokens[0], time.Now().Add(-time.Minute))
	r.checkRefusal("it is not clear which key is current: ")
	// A plugin that has run here since knows which one is current all the same.
	keys := r.keys()
	r.must(os.WriteFile(filepath.Join(r.state, "proven.json"), []byte(`{"keyID":"`+keys[2].KeyID+`","provenAt":"2020-01-01T00:00:00Z"}`), 0o600))
	r.checkRefusal("the current key " + keys[2].KeyID + " is not on the token hsm-b")
}

// While two keys could be meant, which one is followed by which is anybody's guess.
func TestRetireWantsOneCurrentKey(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	id, err := hex.DecodeString(r.keys()[1].ID)
	r.must(err)
	r.generate(r.tokens[0], id)
	r.checkRefusal("it is not clear which key is current: the key ring is ambiguous")
}

// checkRefusal checks that exactly one reason speaks against it, or none if want is empty, and that nothing is destroyed on a refusal.
func (r *retireRig) checkRefusal(want string) {
	r.t.Helper()
	said, errOut, code := r.retire()
	switch {
	case want == "":
		if code != 0 || len(said.Refusals) != 0 {
			r.t.Errorf("exit %d, %+v: %s", code, said, errOut)
		}
	case code != 1 || len(said.Refusals) != 1 || !strings.Contains(said.Refusals[0].Reason, want) || said.Refusals[0].Hint == "" || r.holders() == nil:
		r.t.Errorf("exit %d, %+v: %s", code, said, errOut)
	}
}

// A call that does not return leaves it unknown what becomes of the key: it is told, exit 2, and is on record; the next
// run finds out, and completes it.
func TestRetireUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := newRetireRig(t)
	text, err := os.ReadFile(r.configPath())
	r.must(err)
	// The outcome is sought for connectTimeout.
	r.file("config.yaml", strings.ReplaceAll(string(text), "callTimeout: 1500ms", "callTimeout: 1500ms, connectTimeout: 8s"))
	r.tokens[1].faults.Hang("C_DestroyObject")
	said, errOut, code := r.retire()
	want := []retire.Outcome{{Token: "hsm-a", Outcome: "destroyed"}, {Token: "hsm-b", Outcome: "unknown"}}
	if code != 2 || !slices.Equal(said.Outcomes, want) || !slices.Equal(said.Destroyed, []string{"hsm-a"}) ||
		!strings.Contains(errOut, "destroyed on hsm-a; unknown on hsm-b") || !strings.Contains(errOut, "\nhint: run: hsm-kms keys list") {
		t.Errorf("exit %d, %+v: %s", code, said, errOut)
	}
	trail, err := os.ReadFile(audit.Beside(r.audit, "keys-retire"))
	r.must(err)
	if !bytes.Contains(trail, []byte(`"code":"Unknown"`)) {
		t.Errorf("the trail: %s", trail)
	}
	r.tokens[1].faults.Clear() // the call goes on
	if said, errOut, code := r.retire(); code != 0 {
		t.Errorf("again: exit %d, %+v: %s", code, said, errOut)
	}
	r.checkGone()
}
