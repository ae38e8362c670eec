package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
)

const namespace = "hsm-kms"

// api is an API server that keeps objects by path, with resourceVersions that are compared on an update.
type api struct {
	http *httptest.Server

	mu        sync.Mutex
	version   int
	objects   map[string]map[string]any
	requests  int
	crd       bool // KeyRings are served
	older     bool // StorageVersionMigrations are not
	down      bool
	conflict  bool   // every update comes too late
	notReady  bool   // its KMS providers are not
	noList    bool   // a list is answered with another object
	rival     string // takes the leadership as soon as somebody has seen that nobody has it
	forbidden string // end of the path of what may not be made
	ready     func() // called when the KMS providers are asked about, with the lock held; nil: nothing
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{objects: map[string]map[string]any{}, crd: true}
	a.http = httptest.NewServer(a)
	t.Cleanup(a.http.Close)
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	path := r.URL.Path
	var body map[string]any
	if r.Method != http.MethodGet && r.Method != http.MethodDelete && json.NewDecoder(r.Body).Decode(&body) != nil {
		a.fail(w, http.StatusBadRequest)
		return
	}
	switch object := a.objects[strings.TrimSuffix(path, "/status")]; {
	case a.down:
		a.fail(w, http.StatusServiceUnavailable)
	case a.noList && strings.HasSuffix(path, "/leases"):
		fmt.Fprint(w, `{"status":"ok"}`)
	case a.forbidden != "" && r.Method == http.MethodPost && strings.HasSuffix(fmt.Sprint(body["metadata"].(map[string]any)["name"]), a.forbidden): //nolint:forcetypeassert // ours
		a.fail(w, http.StatusForbidden)
	case a.ready != nil && path == "/readyz/kms-providers":
		a.ready()
		fmt.Fprint(w, "ok")
	case a.notReady && path == "/readyz/kms-providers":
		a.fail(w, http.StatusInternalServerError)
	case path == "/readyz/kms-providers":
		fmt.Fprint(w, "ok")
	case !a.crd && strings.HasPrefix(path, keyRings), a.older && strings.HasPrefix(path, migrationsPath):
		a.fail(w, http.StatusNotFound)
	case r.Method == http.MethodPost:
		a.create(w, path, body)
	case r.Method == http.MethodGet && (strings.HasSuffix(path, "/leases") || strings.HasSuffix(path, "/events") || path == migrationsPath):
		a.list(w, r)
	case object == nil:
		a.fail(w, http.StatusNotFound)
		if rival := a.rival; rival != "" && strings.HasSuffix(path, "/"+leaderLease) {
			a.version++
			a.objects[path] = map[string]any{"metadata": map[string]any{"name": leaderLease, "resourceVersion": strconv.Itoa(a.version)}, "spec": map[string]any{"holderIdentity": rival}}
		}
	case r.Method == http.MethodDelete:
		delete(a.objects, path)
		_ = json.NewEncoder(w).Encode(object)
	case r.Method == http.MethodGet:
		_ = json.NewEncoder(w).Encode(object)
	case r.Method == http.MethodPatch:
		object["status"] = body["status"]
		a.put(w, strings.TrimSuffix(path, "/status"), object)
	case a.conflict || versionOf(body) != versionOf(object):
		a.fail(w, http.StatusConflict)
	default:
		a.put(w, path, body)
	}
}

// list answers page by page.
func (a *api) list(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	items := []any{}
	for _, key := range slices.Sorted(maps.Keys(a.objects)) {
		selected := r.URL.Query().Get("labelSelector")
		if !strings.HasPrefix(key, path+"/") || selected != "" && !strings.Contains(fmt.Sprint(a.objects[key]["metadata"]), strings.Split(selected, "=")[0]) {
			continue
		}
		items = append(items, a.objects[key])
	}
	meta := map[string]any{}
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	if items = items[from:]; r.URL.Query().Get("limit") != "" {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		if len(items) > limit {
			items, meta["continue"] = items[:limit], strconv.Itoa(from+limit)
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "List", "metadata": meta, "items": items})
}

func (a *api) create(w http.ResponseWriter, path string, body map[string]any) {
	meta := body["metadata"].(map[string]any) //nolint:forcetypeassert // ours
	name, _ := meta["name"].(string)
	if name == "" {
		name = fmt.Sprint(meta["generateName"], a.version)
		meta["name"] = name
	}
	if a.objects[path+"/"+name] != nil {
		a.fail(w, http.StatusConflict)
		return
	}
	meta["uid"] = "uid-" + name
	a.put(w, path+"/"+name, body)
}

func versionOf(object map[string]any) string {
	meta, _ := object["metadata"].(map[string]any)
	return fmt.Sprint(meta["resourceVersion"])
}

func (a *api) fail(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","code":%d}`, code)
}

func (a *api) put(w http.ResponseWriter, path string, object map[string]any) {
	a.version++
	object["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(a.version) //nolint:forcetypeassert // ours
	a.objects[path] = object
	_ = json.NewEncoder(w).Encode(object)
}

func (a *api) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// get decodes an object; false: there is none.
func (a *api) get(t *testing.T, path string, into any) bool {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	data, err := json.Marshal(a.objects[path])
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a.objects[path] != nil
}

func (a *api) count(prefix string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for path := range a.objects {
		if strings.HasPrefix(path, prefix) {
			n++
		}
	}
	return n
}

// plugin answers Status as one does.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	socket string

	mu       sync.Mutex
	healthz  string
	keyID    string
	retained []string
	hold     string // the trailer; empty: none
	err      error
}

func newPlugin(t *testing.T, keyID string, retained ...string) *plugin {
	t.Helper()
	dir, err := os.MkdirTemp("", "op") // t.TempDir is too long for a socket's path on some systems
	if err != nil {
		t.Fatal(err)
	}
	p := &plugin{socket: filepath.Join(dir, "s"), healthz: "ok", keyID: keyID, retained: retained}
	listener, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, p)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); _ = os.RemoveAll(dir) })
	return p
}

func (p *plugin) Status(ctx context.Context, _ *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range p.retained {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("hsm-kms-retained", id))
	}
	if p.hold != "" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("hsm-kms-hold-bin", p.hold))
	}
	if p.err != nil {
		return nil, p.err
	}
	return &kmsapi.StatusResponse{Version: "v2", Healthz: p.healthz, KeyId: p.keyID}, nil
}

// keyID makes one that became current at a time.
func keyID(t *testing.T, activation time.Time) string {
	t.Helper()
	ckaID, err := envelope.NewCKAID(activation)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.KeyID{Ring: "ring", Version: string(ckaID), Fingerprint: [8]byte{byte(activation.Unix())}}.String()
}

// newOperator makes one of a node. Its etcd is one that nobody reaches.
func newOperator(t *testing.T, a *api, p *plugin, name string) *Operator {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q}}],"users":[{"name":"u","user":{}}]}`, a.http.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := migrate.Defaults()
	opts.Namespace = namespace
	o, err := New(Config{
		Ring: "ring", Socket: p.socket, Node: name, Hostname: name, StateDir: filepath.Join(t.TempDir(), "state"), Version: "test",
		Interval: time.Second, Settle: time.Hour, Recheck: time.Hour, Kube: kubeapi.Config{Kubeconfig: kubeconfig, Servers: []string{a.http.URL}},
		Etcd: sources.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefixes: []string{"/registry"}}, Migrate: opts, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// peeked is a body that can be read again, and its text.
func peeked(body io.ReadCloser) (io.ReadCloser, []byte) {
	text, _ := io.ReadAll(body)
	return io.NopCloser(bytes.NewReader(text)), text
}

// replaced is a body in which one text stands for another.
func replaced(body io.ReadCloser, old, text string) io.ReadCloser {
	_, was := peeked(body)
	return io.NopCloser(strings.NewReader(strings.ReplaceAll(string(was), old, text)))
}
