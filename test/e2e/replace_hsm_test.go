//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tokens"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// mover is a node whose HSM is replaced.
type mover struct {
	name, http string
	plugin     *plugin.Plugin
	old        *softhsm.Token
	new        *tokens.Token
}

// The steps of docs/replace-hsm.md as what a node's configuration says.
const (
	onlyOld = iota
	readsNew
	writesNew
	retiresOld
)

// configure writes the node's configuration of a step.
func (n *mover) configure(t *testing.T, step int) {
	t.Helper()
	text, err := os.ReadFile(n.plugin.Config())
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\nstateDir:")
	if !found {
		t.Fatalf("no stateDir in %s", text)
	}
	rest, _, _ = strings.Cut(rest, "\nreadRings:")
	socket := fmt.Sprintf("apiVersion: hsm-kms/v1\nkind: PluginConfiguration\nsocket: {path: %q, allowedUIDs: [%d]}\n", n.plugin.Socket(), os.Getuid())
	old := fmt.Sprintf("{name: old-a, module: %q, label: %q, pinFile: %q}", n.old.Module, n.old.Label, n.old.PINFile)
	new := fmt.Sprintf("{name: new-a, module: %q, label: %q, pinFile: %q}", n.new.Module, n.new.Label, n.new.PINFile)
	ring := func(name, profile, token string) string {
		return fmt.Sprintf("keyRing: %s\nprofile: %s\ntokens: [%s]\nstateDir:%s", name, profile, token, rest)
	}
	reads := func(name, profile, token string, retiring bool) string {
		return fmt.Sprintf("\nreadRings: [{keyRing: %s, profile: %s, retiring: %t, tokens: [%s]}]\n", name, profile, retiring, token)
	}
	text = []byte(socket + map[int]string{
		onlyOld:    ring("kube-old", "aes-gcm", old),
		readsNew:   ring("kube-old", "aes-gcm", old) + reads("kube-new", n.new.Profile, new, false),
		writesNew:  ring("kube-new", n.new.Profile, new) + reads("kube-old", "aes-gcm", old, false),
		retiresOld: ring("kube-new", n.new.Profile, new) + reads("kube-old", "aes-gcm", old, true),
	}[step])
	if err := os.WriteFile(n.plugin.Config(), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// restart restarts the plugin; killed: by SIGKILL, and once more while it starts.
func (n *mover) restart(t *testing.T, killed bool) {
	t.Helper()
	if killed {
		n.plugin.Kill()
		if _, err := n.plugin.Serve(); err != nil {
			t.Fatal(err)
		}
		n.plugin.Kill()
	} else if err := n.plugin.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := n.plugin.Start(ctx); err != nil {
		t.Fatal(err)
	}
}

// waitRing waits until the node's plugin is ok and has proven every key of the ring.
func (n *mover) waitRing(t *testing.T, ring string) {
	t.Helper()
	eventually(t, n.name+" has proven "+ring, func() (bool, string) {
		out, err := n.plugin.Run(t.Context(), "status", "--ring", ring)
		return err == nil, fmt.Sprint(string(out), err)
	})
}

func (n *mover) client(t *testing.T) kmsapi.KeyManagementServiceClient {
	t.Helper()
	return (&alone{rig: &rig{plugin: n.plugin}}).dial(t)
}

// readyz is the plugin's own.
func (n *mover) readyz(ctx context.Context) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+"/readyz", nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func newMovers(t *testing.T, count int) []*mover {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	old, err := softhsm.New(t.Context(), filepath.Join(dir, "hsm"), "old", "")
	if err != nil {
		t.Fatal(err)
	}
	new := tokens.Opencryptoki(t)
	ports, err := kube.FreePorts(count)
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*mover
	for i, port := range ports {
		n := &mover{name: fmt.Sprintf("n%d", i+1), old: old, new: new, http: fmt.Sprintf("127.0.0.1:%d", port)}
		n.plugin, err = plugin.New(plugin.Options{Bin: bin.HSMKMS, Dir: filepath.Join(dir, n.name), Token: old, HTTP: n.http, Extra: quick})
		if err != nil {
			t.Fatal(err)
		}
		n.configure(t, onlyOld)
		t.Cleanup(func() {
			if p := n.plugin.Process(); p != nil && t.Failed() {
				t.Logf("%s, hsm-kms:\n%s", n.name, p.Tail(30))
			}
			if err := n.plugin.Stop(); err != nil {
				t.Error(err)
			}
		})
		nodes = append(nodes, n)
	}
	return nodes
}

// The HSM of three nodes is replaced by one of another vendor, with another profile, while they write and read: SoftHSM with
// aes-gcm by opencryptoki with hmac-kdf. Each step is killed once; one node goes back and comes again; then the old HSM is lost
// for a while. No read and no write fails.
func TestReplaceHSM(t *testing.T) {
	if tokens.Apart(t) {
		return
	}
	nodes := newMovers(t, 3)
	if _, err := nodes[0].plugin.CreateKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := n.plugin.Start(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := startMovers(t, nodes)
	m.waitWritesUnder(t, "kube-old", nodes...)

	t.Log("1. every node reads the new ring")
	for i, n := range nodes {
		n.configure(t, readsNew)
		if i == 0 {
			createKilled(t, n)
		}
		n.restart(t, i == 0)
		n.waitRing(t, "kube-new")
	}
	m.waitWritesUnder(t, "kube-old", nodes...)
	if under := m.under(); under["kube-new"] != 0 {
		t.Errorf("something was written under a ring that is only read: %v", under)
	}

	t.Log("2. node by node, the new ring is written under; the first goes back once")
	for i, n := range nodes {
		steps := []int{writesNew}
		if i == 0 {
			steps = []int{writesNew, readsNew, writesNew}
		}
		for _, step := range steps {
			n.configure(t, step)
			n.restart(t, i == 1)
			n.waitRing(t, "kube-old")
			n.waitRing(t, "kube-new")
			m.waitWritesUnder(t, map[int]string{readsNew: "kube-old", writesNew: "kube-new"}[step], n)
		}
		m.waitWritesUnder(t, map[bool]string{true: "kube-new", false: "kube-old"}[i == 2], nodes[2])
	}
	m.waitWritesUnder(t, "kube-new", nodes...)

	t.Log("3. everything is rewritten, in two runs, and the old ring is retiring")
	if left := m.migrate(t, nodes[0], "kube-new", 5); left == 0 {
		t.Error("there was nothing to migrate in a second run")
	}
	m.migrate(t, nodes[1], "kube-new", 1<<20)
	if under := m.under(); under["kube-old"] != 0 || under["kube-new"] == 0 {
		t.Errorf("after the migration: %v", under)
	}
	for i, n := range nodes {
		n.configure(t, retiresOld)
		n.restart(t, i == 2)
		n.waitRing(t, "kube-old")
	}
	loseOld(t, m)
	m.check(t)
	withoutStepOne(t, m)
}

// createKilled makes the first key of the new ring with a command that is killed, and one that is not: there is one key then.
func createKilled(t *testing.T, n *mover) {
	t.Helper()
	killed, err := proc.Start(proc.Spec{
		Name: "keys create", Path: must(plugin.FindPrograms()).HSMKMS, Args: []string{"keys", "create", "--ring", "kube-new", "--config", n.plugin.Config()},
		Env: n.old.Env(), Log: n.plugin.Log() + ".create",
	})
	if err != nil {
		t.Fatal(err)
	}
	killed.Kill()
	eventually(t, "the new ring has one key", func() (bool, string) {
		out, err := n.plugin.Run(t.Context(), "keys", "create", "--ring", "kube-new")
		exit, finding := errors.AsType[*plugin.ExitError](err)
		return err == nil || finding && strings.Contains(exit.Stderr, "has a key already"), fmt.Sprint(string(out), err)
	})
	out, err := n.plugin.Run(t.Context(), "keys", "list", "--ring", "kube-new", "-o", "json")
	if err != nil || strings.Count(string(out), `"keyID"`) != 1 || !strings.Contains(string(out), `"state": "retained"`) {
		t.Errorf("keys list --ring kube-new: %v: %s", err, out)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// loseOld takes the old HSM away: Status of every node stays ok and its writes go on, /readyz says what not to do, and all is
// well again when it is back.
func loseOld(t *testing.T, m *movers) {
	t.Helper()
	away := m.nodes[0].old.Store() + ".away"
	if err := errors.Join(os.Rename(m.nodes[0].old.Store(), away), os.Mkdir(m.nodes[0].old.Store(), 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, n := range m.nodes {
		eventually(t, n.name+" says that the old ring is away", func() (bool, string) {
			code, text, err := n.readyz(t.Context())
			return code == http.StatusServiceUnavailable && strings.Contains(text, "do not restart kube-apiserver here while etcd holds its key_ids"), fmt.Sprint(code, text, err)
		})
		if is, err := n.plugin.Status(t.Context()); err != nil || is.Healthz != "ok" || !strings.HasPrefix(is.KeyID, "kube-new/") {
			t.Errorf("%s: Status is %+v, %v", n.name, is, err)
		}
		if _, err := n.plugin.Run(t.Context(), "status", "--ring", "kube-old"); err == nil {
			t.Errorf("%s: status --ring kube-old succeeds", n.name)
		}
		n.waitMetric(t, `hsm_kms_read_ring_ok{ring="kube-old"}`, "0")
	}
	m.waitWritesUnder(t, "kube-new", m.nodes...)
	if err := errors.Join(os.Remove(m.nodes[0].old.Store()), os.Rename(away, m.nodes[0].old.Store())); err != nil {
		t.Fatal(err)
	}
	for _, n := range m.nodes {
		n.waitRing(t, "kube-old")
		eventually(t, n.name+" is ready", func() (bool, string) {
			code, text, err := n.readyz(t.Context())
			return code == http.StatusOK, fmt.Sprint(code, text, err)
		})
	}
}

func (n *mover) waitMetric(t *testing.T, name, want string) {
	t.Helper()
	(&node{name: n.name, http: n.http}).waitSample(t, name, want)
}

// withoutStepOne: a node that does not read the new ring cannot read what the others write under it. That is why every node
// reads it before any writes under it.
func withoutStepOne(t *testing.T, m *movers) {
	t.Helper()
	n := m.nodes[2]
	n.configure(t, onlyOld)
	n.restart(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.objects[0].open(ctx, n.client(t)); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "unknown key_id") {
		t.Errorf("a node without the new ring reads what is under it: %v", err)
	}
}
