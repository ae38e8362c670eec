//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// The command is killed and stopped in the middle while clients write, one object
// cannot be read by anybody, and the user may do no more than the documents say.
func TestMigrateHard(t *testing.T) {
	t.Parallel()
	w := newRig(t)
	encrypts(t, w.cluster, identity, w.hsm)
	must(t, w.cluster.CreateNamespace(t.Context(), namespace))
	w.customResource(t)
	w.populate(t, 120, 30, 10)
	encrypts(t, w.cluster, w.hsm, identity)
	m := w.migrator(t)

	t.Log("killed in the middle")
	first := w.start(t, m.args("--rate", "50"))
	w.waitUnder(t, w.keyID, 30)
	must(t, first.cmd.Process.Kill())
	_ = first.cmd.Wait()
	killed := w.underKey(t, w.keyID)
	if killed >= 160 {
		t.Fatalf("it was through before it was killed: %d", killed)
	}

	t.Log("stopped in the middle, while clients write")
	stopWriting := w.write(t)
	second := w.start(t, m.args("--rate", "50", "-o", "json"))
	w.waitUnder(t, w.keyID, killed+writtenTo+20)
	must(t, second.cmd.Process.Signal(syscall.SIGINT))
	if err := second.cmd.Wait(); second.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(second.errOut.String(), "hint: run it again") {
		t.Errorf("interrupted: %v: %s", err, second.errOut.String())
	}
	var stopped migration
	outcome{out: second.out.String()}.into(t, &stopped)
	if !stopped.Interrupted || stopped.Rewritten == 0 || stopped.Report != nil {
		t.Errorf("outcome: %+v", stopped)
	}
	w.noCanaries(t)

	t.Log("and through")
	out, _ := m.run(t, 0, "--rate", "500")
	if out.Rewritten == 0 || out.Failed != 0 || int64(killed)+stopped.Rewritten+out.Rewritten > 170 {
		t.Errorf("after %d and %d: %+v", killed, stopped.Rewritten, out)
	}
	written := stopWriting()
	t.Logf("clients wrote %d times meanwhile", written)
	w.intact(t, 120)

	t.Log("an object that nobody can read does not stand in the way")
	next := w.rotate(t)
	encrypts(t, w.cluster, w.hsm, identity)
	client, err := w.cluster.Etcd()
	must(t, err)
	moved, err := w.cluster.EtcdGet(t.Context(), "/registry/secrets/"+namespace+"/secret-1")
	must(t, err)
	// An object stands under its own place in etcd: elsewhere it is not authentic.
	_, err = client.Put(t.Context(), "/registry/secrets/"+namespace+"/aaa-moved", string(moved))
	must(t, err)
	_, err = client.Put(t.Context(), "/registry/secrets/"+namespace+"/aaa-cut", string(moved[:30]))
	must(t, err)
	out, o := m.run(t, 1, "--rate", "500")
	if out.RequiredKey != next || out.Failed != 2 || out.Rewritten < 150 || len(out.Failures) != 2 {
		t.Errorf("outcome: %+v", out)
	}
	t.Logf("%+v", out.Failures)
	if !strings.Contains(fmt.Sprint(out.Failures), "/aaa-moved Internal error occurred") && !strings.Contains(fmt.Sprint(out.Failures), "aaa-moved the API server could not do it now") {
		t.Errorf("failures: %+v", out.Failures)
	}
	if n := len(out.Report.Findings); n != 2 || !strings.Contains(o.errOut, "could not be rewritten") {
		t.Errorf("%d findings: %s", n, o.errOut)
	}
	for _, name := range []string{"aaa-moved", "aaa-cut"} {
		_, err = client.Delete(t.Context(), "/registry/secrets/"+namespace+"/"+name)
		must(t, err)
	}
	w.intact(t, 120)

	t.Log("the role of the documents is enough, and without it it says what is missing")
	last := w.rotate(t)
	encrypts(t, w.cluster, w.hsm, identity)
	limited := w.limitedUser(t)
	must(t, w.cluster.WriteKubeconfigOf(m.kubeconfig, limited.token))
	m.resources = "secrets,widgets.example.com"
	for resources, says := range map[string]string{"secrets": "forbidden", m.resources: `cannot list resource "apiservices"`} {
		o := run(t, m.plugin, m.args("--resources", resources)[1:]...)
		if o.code == 0 || !strings.Contains(o.errOut, says) {
			t.Errorf("%s without the role: %d, %s", resources, o.code, o.errOut)
		}
	}
	limited.grant(t)
	if out, _ := m.run(t, 0, "--rate", "500"); out.RequiredKey != last || out.Rewritten < 120 {
		t.Errorf("outcome: %+v", out)
	}
}

// process is a command that runs, and what it has printed; read that after Wait.
type process struct {
	cmd         *exec.Cmd
	out, errOut bytes.Buffer
}

func (w *rig) start(t *testing.T, args []string) *process {
	t.Helper()
	p := &process{cmd: proc.Command(t.Context(), w.bin.HSMKMS, append(args, "--config", w.plugin.Config())...)}
	p.cmd.Env = append(os.Environ(), w.token.Env()...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errOut
	must(t, p.cmd.Start())
	return p
}

// underKey counts the objects that are under a key, by their bytes in etcd.
func (w *rig) underKey(t *testing.T, keyID string) (n int) {
	t.Helper()
	for _, kv := range w.stored(t) {
		if bytes.Contains(kv.Value, []byte(keyID)) {
			n++
		}
	}
	return n
}

func (w *rig) waitUnder(t *testing.T, keyID string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for w.underKey(t, keyID) < n {
		select {
		case <-deadline:
			t.Fatalf("%d of %d objects are under %s", w.underKey(t, keyID), n, keyID)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// writtenTo is how many Secrets clients write to: so many come under the key without a migration.
const writtenTo = 20

// write changes Secrets until it is told to stop, and says how often it did.
func (w *rig) write(t *testing.T) (stop func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var written atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			path := fmt.Sprintf("/api/v1/namespaces/%s/secrets/secret-%d", namespace, i%writtenTo)
			var object map[string]any
			err := w.cluster.Do(ctx, http.MethodGet, path, nil, &object)
			if err == nil {
				object["metadata"].(map[string]any)["labels"] = map[string]string{"written": fmt.Sprint(i)}
				err = w.cluster.Do(ctx, http.MethodPut, path, object, nil)
			}
			switch {
			case err == nil:
				written.Add(1)
			case ctx.Err() == nil && !strings.Contains(err.Error(), "409"): // it was rewritten between the two
				t.Errorf("a client's write: %v", err)
				return
			}
		}
	}()
	return func() int64 { cancel(); <-done; return written.Load() }
}

// intact reads every Secret through the API.
func (w *rig) intact(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("secret-%d", i)
		if s, err := w.cluster.GetSecret(t.Context(), namespace, name); err != nil || string(s.Data["password"]) != "canary-"+name {
			t.Errorf("%s: %q, %v", name, s.Data["password"], err)
		}
	}
}

// limited is a service account without any permission.
type limited struct {
	*rig
	token string
}

func (w *rig) limitedUser(t *testing.T) *limited {
	t.Helper()
	must(t, w.cluster.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/default/serviceaccounts",
		map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "migrate"}}, nil))
	var token struct{ Status struct{ Token string } }
	must(t, w.cluster.Do(t.Context(), http.MethodPost, "/api/v1/namespaces/default/serviceaccounts/migrate/token",
		map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{}}, &token))
	return &limited{w, token.Status.Token}
}

// grant gives it the roles of docs/evidence.md.
func (l *limited) grant(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../../../docs/evidence.md")
	must(t, err)
	block := regexp.MustCompile("(?s)```yaml\n(.*?kind: ClusterRole.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatal("the documents have no role")
	}
	const path = "/apis/rbac.authorization.k8s.io/v1/"
	for document := range strings.SplitSeq(string(block[1]), "---\n") {
		var role map[string]any
		must(t, yaml.Unmarshal([]byte(document), &role))
		in, roles, bindings := "", "clusterroles", "clusterrolebindings"
		if role["kind"] == "Role" {
			in, roles, bindings = "namespaces/default/", "roles", "rolebindings"
		}
		must(t, l.cluster.Do(t.Context(), http.MethodPost, path+in+roles, role, nil))
		must(t, l.cluster.Do(t.Context(), http.MethodPost, path+in+bindings, map[string]any{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": role["kind"].(string) + "Binding", "metadata": map[string]any{"name": "hsm-kms-migrate"},
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": "hsm-kms-migrate"},
			"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": "migrate", "namespace": "default"}},
		}, nil))
	}
}
