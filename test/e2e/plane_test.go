//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// quick is configuration for tests that rotate: a new version is seen within a second.
const quick = "refreshInterval: 1s\nprobeInterval: 1s"

// plane is a control plane of three nodes on an etcd of three members.
type plane struct {
	etcd  *kube.Members
	nodes []*node
}

// node is an API server and its plugin.
type node struct {
	name    string
	token   *softhsm.Token
	plugin  *plugin.Plugin
	cluster *kube.Cluster
	http    string // the plugin's host:port
}

// planeOptions say how a plane differs from one with a token for all, a key, and Secrets that are encrypted.
type planeOptions struct {
	apart     bool                              // each node's token is a copy of the first's
	resources []string                          // to encrypt
	args      []string                          // more flags for the API servers
	extra     string                            // more lines of the plugins' configuration
	module    func(token *softhsm.Token) string // that a node's plugin loads; nil: the token's own
	create    func(p *plane, n *node)
}

// newPlane makes three nodes and a first key, and starts everything. apart: each node's token is a copy of the first's.
func newPlane(t *testing.T, apart bool) *plane {
	t.Helper()
	return newPlaneWith(t, planeOptions{apart: apart, create: func(_ *plane, n *node) {
		if _, err := n.plugin.CreateKey(t.Context()); err != nil {
			t.Fatal(err)
		}
	}})
}

func newPlaneWith(t *testing.T, opts planeOptions) *plane {
	t.Helper()
	bin, err := plugin.FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	p := &plane{}
	if p.etcd, err = kube.NewMembers(bin.Kube, filepath.Join(dir, "etcd"), 3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop(t) })
	token, err := softhsm.New(t.Context(), filepath.Join(dir, "hsm1"), "e2e", "")
	if err != nil {
		t.Fatal(err)
	}
	ports, err := kube.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	for i, port := range ports {
		n := &node{name: fmt.Sprintf("n%d", i+1), token: token, http: fmt.Sprintf("127.0.0.1:%d", port)}
		if i > 0 && opts.apart {
			if n.token, err = token.CopyTo(filepath.Join(dir, fmt.Sprintf("hsm%d", i+1))); err != nil {
				t.Fatal(err)
			}
		}
		if opts.module != nil {
			own := *n.token
			own.Module = opts.module(n.token)
			n.token = &own
		}
		n.plugin, err = plugin.New(plugin.Options{
			Bin: bin.HSMKMS, Dir: filepath.Join(dir, n.name), Token: n.token, HTTP: n.http, Extra: quick + "\n" + opts.extra,
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			opts.create(p, n)
		}
		n.cluster, err = kube.New(kube.Options{
			Bin: bin.Kube, Dir: filepath.Join(dir, "kube-"+n.name), Socket: n.plugin.Socket(), Etcd: p.etcd, Resources: opts.resources, Args: opts.args,
		})
		if err != nil {
			t.Fatal(err)
		}
		p.nodes = append(p.nodes, n)
	}
	p.start(t, []int{0, 1, 2, 3, 4, 5, 6, 7, 8})
	if err := p.nodes[0].cluster.CreateNamespace(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	return p
}

// shortDir is a folder of the test's; t.TempDir is too long for a socket's path on some systems.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hsm-kms-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// start starts all nine processes in the given order without waiting (0 to 2: etcd, 3 to 5: plugins, 6 to 8: API
// servers), then waits until all are ready.
func (p *plane) start(t *testing.T, order []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for _, i := range order {
		var err error
		switch n := p.nodes[i%3]; i / 3 {
		case 0:
			err = p.etcd.Launch(i)
		case 1:
			_, err = n.plugin.Serve()
		case 2:
			err = n.cluster.StartAPIServer(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.etcd.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range p.nodes {
		if err := n.cluster.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// kill ends all nine processes in the given order with SIGKILL.
func (p *plane) kill(order []int) {
	for _, i := range order {
		switch n := p.nodes[i%3]; i / 3 {
		case 0:
			p.etcd.Kill(i)
		case 1:
			n.plugin.Kill()
		case 2:
			n.cluster.APIServer().Kill()
		}
	}
}

// stop ends everything, and shows the logs of a test that failed.
func (p *plane) stop(t *testing.T) {
	t.Helper()
	for _, n := range p.nodes {
		if t.Failed() {
			t.Logf("%s, kube-apiserver:\n%s", n.name, n.cluster.Log(20))
			if served := n.plugin.Process(); served != nil {
				t.Logf("%s, hsm-kms:\n%s", n.name, served.Tail(30))
			}
		}
	}
	var wg sync.WaitGroup
	for _, n := range p.nodes {
		wg.Go(func() {
			if err := n.cluster.Stop(); err != nil {
				t.Error(err)
			}
			if err := n.plugin.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := p.etcd.Stop(); err != nil {
		t.Error(err)
	}
}

// logLine is what the tests look at of a line of the plugin's log.
type logLine struct {
	Level, Msg, Error, KeyID, Hint string
	text                           string
}

// readLog reads the whole log of a plugin.
func readLog(t *testing.T, p *plugin.Plugin) []logLine {
	t.Helper()
	data, err := os.ReadFile(p.Log())
	if err != nil {
		t.Fatal(err)
	}
	var lines []logLine
	for text := range bytes.Lines(data) {
		line := logLine{text: strings.TrimSpace(string(text))}
		if err := json.Unmarshal(text, &line); err != nil {
			continue // the end of a killed process, or what it said before it had a log
		}
		lines = append(lines, line)
	}
	return lines
}

// checkNoAlarm checks that the plugin's log has no warning and no error: during a rotation that goes well there is
// nothing that a person should look at. Those that expected accepts are not counted.
func checkNoAlarm(t *testing.T, p *plugin.Plugin, expected func(logLine) bool) {
	t.Helper()
	for _, line := range readLog(t, p) {
		if line.Msg == "the module gets variables that a later release will not pass" {
			continue // those are the variables that the tests were started with
		}
		if (line.Level == "WARN" || line.Level == "ERROR") && (expected == nil || !expected(line)) {
			t.Errorf("%s has an alarming line: %s", p.Log(), line.text)
		}
	}
}

// metrics reads a plugin's samples: name and labels to value, as text.
func metrics(ctx context.Context, address string) (map[string]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return nil, fmt.Errorf("reading metrics: %w", err)
	}
	samples := map[string]string{}
	for line := range strings.Lines(body.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			samples[name] = value
		}
	}
	return samples, nil
}

// currentKeys are the key_ids that a plugin's metrics call current: one, or none.
func currentKeys(samples map[string]string) []string {
	var ids []string
	for name := range samples {
		if rest, ok := strings.CutPrefix(name, `hsm_kms_current_key_info{key_id="`); ok {
			ids = append(ids, strings.TrimSuffix(rest, `"}`))
		}
	}
	slices.Sort(ids)
	return ids
}

// waitSample waits until a metric of the node has a value.
func (n *node) waitSample(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, n.name+": "+name+" "+want, func() (bool, string) {
		samples, err := metrics(t.Context(), n.http)
		if err != nil {
			return false, err.Error()
		}
		return samples[name] == want, samples[name]
	})
}

// waitCurrent waits until the node's plugin calls the key current.
func (n *node) waitCurrent(t *testing.T, keyID string) {
	t.Helper()
	n.waitSample(t, `hsm_kms_current_key_info{key_id="`+keyID+`"}`, "1")
}
