package migrate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
)

const oldKey, newKey = "ring/1/old", "ring/2/new"

// sealed is a value under a key; plain text under "".
func sealed(keyID string) []byte { return sealedBy("hsm-kms", keyID) }

// sealedBy is sealed, by the provider of that name.
func sealedBy(provider, keyID string) []byte {
	if keyID == "" {
		return []byte("k8s\x00plain")
	}
	b := []byte("k8s:enc:kms:v2:" + provider + ":")
	b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), []byte("data"))
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), keyID)
	return protowire.AppendBytes(protowire.AppendTag(b, 3, protowire.BytesType), []byte("wrapped"))
}

// store is an etcd: an evidence.Source that API servers write to.
type store struct {
	mu       sync.Mutex
	revision int64
	objects  map[string]evidence.Object // by key
	twice    bool                       // Read gives everything again at its end, as after a compaction
	hidden   []string                   // ranges that it does not let be read
}

func newStore() *store { return &store{revision: 100, objects: map[string]evidence.Object{}} }

func (s *store) put(path, keyID string) int64 { return s.putValue(path, sealed(keyID)) }

func (s *store) putValue(path string, value []byte) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	key := "/registry/" + path
	s.objects[key] = evidence.Object{Key: []byte(key), Path: []byte(path), Value: value, Revision: s.revision}
	return s.revision
}

func (s *store) remove(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, "/registry/"+path)
}

// under counts the objects below a path that are under a key.
func (s *store) under(path, keyID string) (n int) {
	for _, o := range s.all() {
		if v, err := stored.Parse(o.Value); err == nil && strings.HasPrefix(string(o.Path), path) && v.Object.KeyID == keyID {
			n++
		}
	}
	return n
}

func (s *store) all() []evidence.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []evidence.Object
	for _, o := range s.objects {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b evidence.Object) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return all
}

func (s *store) Read(ctx context.Context, _ evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	rounds := 1
	if s.twice {
		rounds = 2
	}
	for range rounds {
		for page := range slices.Chunk(s.all(), 3) {
			if err := ctx.Err(); err != nil {
				return evidence.Reading{}, err
			}
			if err := each(page); err != nil {
				return evidence.Reading{}, err
			}
		}
	}
	return evidence.Reading{Name: "fake", Revision: 1, Unreadable: s.hidden}, nil
}

func (s *store) Find(_ context.Context, key string) (evidence.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok {
		return o, evidence.ErrNotFound
	}
	return o, nil
}

// api is a kube-apiserver on a store, as far as a migration sees one.
type api struct {
	t     *testing.T
	store *store
	http  *httptest.Server

	mu     sync.Mutex
	keyID  string         // it writes under this; empty: plain text
	name   string         // of its provider; empty: hsm-kms
	seen   map[string]int // requests, by method and path
	before func(w http.ResponseWriter, r *http.Request, n int) bool
}

// newAPI starts one. before may answer a request itself; n counts from 1 for each method and path.
func newAPI(t *testing.T, s *store, keyID string, before func(w http.ResponseWriter, r *http.Request, n int) bool) *api {
	t.Helper()
	a := &api{t: t, store: s, keyID: keyID, seen: map[string]int{}, before: before}
	a.http = httptest.NewServer(a)
	t.Cleanup(a.http.Close)
	return a
}

// writes is the value that it would store now.
func (a *api) writes() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.name == "" {
		return sealed(a.keyID)
	}
	return sealedBy(a.name, a.keyID)
}

func (a *api) setKey(keyID string) { a.mu.Lock(); defer a.mu.Unlock(); a.keyID = keyID }

func (a *api) requests(methodAndPath string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, count := range a.seen {
		if strings.HasPrefix(name, methodAndPath) {
			n += count
		}
	}
	return n
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.seen[r.Method+" "+r.URL.Path]++
	n := a.seen[r.Method+" "+r.URL.Path]
	a.mu.Unlock()
	if a.before != nil && a.before(w, r, n) {
		return
	}
	if documents[r.URL.Path] != "" {
		fmt.Fprint(w, documents[r.URL.Path])
		return
	}
	if accept := r.Header.Get("Accept"); !strings.Contains(accept, "as=PartialObjectMetadata") || strings.Contains(accept, ",") {
		a.t.Errorf("%s %s would take %q: the content of an object too", r.Method, r.URL.Path, accept)
	}
	path := strings.Replace(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api/v1/"), "/apis/"), "example.com/v1/namespaces/", "example.com/", 1)
	if name, ok := strings.CutPrefix(path, "namespaces/"); ok { // namespaces/NS/secrets/NAME to secrets/NS/NAME
		parts := strings.SplitN(name, "/", 3)
		path = strings.Join(append([]string{parts[1], parts[0]}, parts[2:]...), "/")
	} else if rest, ok := strings.CutPrefix(path, "example.com/"); ok {
		parts := strings.SplitN(rest, "/", 3)
		path = "example.com/" + parts[1] + "/" + parts[0] + "/" + parts[2]
	}
	switch r.Method {
	case http.MethodGet:
		a.list(w, path)
	case http.MethodPost:
		a.create(w, r, path)
	case http.MethodPatch:
		a.patch(w, r, path)
	case http.MethodDelete:
		a.store.remove(path)
		metadata(w, path, 0)
	}
}

var documents = map[string]string{
	"/api/v1": `{"resources":[{"name":"secrets","namespaced":true},{"name":"secrets/status","namespaced":true},{"name":"configmaps","namespaced":true},{"name":"nodes","namespaced":false}]}`,
	"/apis/apiregistration.k8s.io/v1/apiservices": `{"kind":"List","items":[{"spec":{"group":"apps","version":"v1"}}]}`,
	"/apis/example.com":                           `{"versions":[{"groupVersion":"example.com/v2"},{"groupVersion":"example.com/v1"}],"preferredVersion":{"groupVersion":"example.com/v2"}}`,
	"/apis/example.com/v2":                        `{"resources":[{"name":"others","namespaced":true}]}`,
	"/apis/example.com/v1":                        `{"resources":[{"name":"widgets","namespaced":true}]}`,
}

func (a *api) list(w http.ResponseWriter, path string) {
	var items []map[string]any
	for _, o := range a.store.all() {
		if name, ok := strings.CutPrefix(string(o.Path), path+"/hsm-kms-canary-"); ok {
			items = append(items, map[string]any{"metadata": map[string]any{"name": "hsm-kms-canary-" + name}})
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "List", "items": items})
}

func (a *api) create(w http.ResponseWriter, r *http.Request, path string) {
	var made struct {
		Metadata struct {
			GenerateName string
			Labels       map[string]string
		}
		Data any
	}
	if err := json.NewDecoder(r.Body).Decode(&made); err != nil || made.Metadata.Labels[kubeapi.Label] == "" || made.Data != nil {
		a.t.Errorf("a canary of the form %+v, %v", made, err)
	}
	path += fmt.Sprintf("/%s%d", made.Metadata.GenerateName, time.Now().UnixNano())
	metadata(w, path, a.store.putValue(path, a.writes()))
}

func (a *api) patch(w http.ResponseWriter, r *http.Request, path string) {
	var body [3]byte
	if n, _ := r.Body.Read(body[:]); string(body[:n]) != "{}" || r.Header.Get("Content-Type") != "application/merge-patch+json" {
		a.t.Errorf("%s was patched with %q as %s", path, body[:n], r.Header.Get("Content-Type"))
	}
	stored, err := a.store.Find(r.Context(), "/registry/"+path)
	revision := stored.Revision
	switch {
	case err != nil:
		status(w, 404, "NotFound", path+" not found")
		return
	case !bytes.Equal(stored.Value, a.writes()):
		revision = a.store.putValue(path, a.writes())
	}
	metadata(w, path, revision)
}

func metadata(w http.ResponseWriter, path string, revision int64) {
	parts := strings.Split(path, "/")
	_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"name": parts[len(parts)-1], "resourceVersion": fmt.Sprint(revision)}})
}

func status(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code})
}

// options connect to API servers with the real client.
func options(t *testing.T, s *store, apis ...*api) migrate.Options {
	t.Helper()
	var urls []string
	for _, a := range apis {
		urls = append(urls, a.http.URL)
	}
	return optionsOf(t, s, urls, nil)
}

// connect makes the clients of API servers, and of those that are named for groups.
func connect(t *testing.T, urls, named []string) (servers []*kubeapi.Server, groups map[string][]migrate.Server, err error) {
	t.Helper()
	config := kubeapi.Config{Kubeconfig: filepath.Join(t.TempDir(), "config"), Servers: urls}
	text := `{"clusters":[{"name":"x","cluster":{"server":"http://load-balancer.invalid"}}],"contexts":[{"name":"x","context":{"cluster":"x"}}],"current-context":"x"}`
	if err := os.WriteFile(config.Kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if servers, err = kubeapi.Connect(t.Context(), config); err == nil {
		groups, err = kubeapi.ConnectGroups(t.Context(), config, servers[0], named)
	}
	return servers, groups, err
}

// optionsOf is options with API servers for groups.
func optionsOf(t *testing.T, s *store, urls, named []string) migrate.Options {
	t.Helper()
	servers, groups, err := connect(t, urls, named)
	if err != nil {
		t.Fatal(err)
	}
	opts := migrate.Defaults()
	opts.Groups = groups
	for _, server := range servers {
		opts.Servers = append(opts.Servers, server)
	}
	opts.Sources, opts.Prefixes, opts.RequiredKey = []evidence.Source{s}, []string{"/registry"}, newKey
	opts.Rate, opts.Retry, opts.Wait, opts.Patience = 10_000, time.Millisecond, 0, 10*time.Millisecond
	opts.Say = func(text string) { t.Log(text) }
	return opts
}
