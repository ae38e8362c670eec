package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/sources"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// mode is how a part of the simulation answers.
type mode string

const (
	up      mode = ""
	refused mode = "refused" // nobody is there
	hanging mode = "hanging" // it takes what comes, and never answers
	failing mode = "failing" // it answers that it cannot
)

// The times of the simulation that are not those of the program.
const (
	simSettle   = 20 * time.Minute
	simAnnounce = 12 * time.Minute // from a rotation to its activation
	etcdWaits   = 30 * time.Second // how long the client of etcd waits for an answer
)

// sim is a control plane in one process, under the clock of testing/synctest: API servers on one store, plugins, and the real
// operates, each of which has a connection of its own to each API server. All of it runs in one bubble.
type sim struct {
	t   *testing.T
	api *api // Leases, KeyRings, Events and migrations: what is not encrypted

	nodes       []*simNode
	first, next envelope.KeyID // the keys: before the rotation, and after it
	second      string         // key_id of next

	mu        sync.Mutex // guards all below, and what the nodes say is guarded by it
	etcd      mode
	revision  int64
	objects   map[string]simObject // by key of etcd
	activates time.Time            // of next; zero: it does not exist yet
	retired   bool                 // the first key
	refuses   map[string]bool      // names of Secrets that admission lets nobody change; "" is for canaries
	forked    bool                 // each node has a Lease of the leader of its own
	touched   int                  // writes of objects by operates: canaries and rewriting
	patched   map[string]int       // of them those of clients' objects, by resource
	requests  map[string]int       // to API servers, by operate; those that found nobody are counted too
	asked     map[string]bool      // verb and path of each request
	states    []state.Name         // that the KeyRing had, without repetitions
	last      Status
	on        map[state.Name]func(leader string) // done once, when the KeyRing gets that state
}

type simObject struct {
	key      string // key_id
	revision int64
}

// simNode is a node: an API server, a plugin, and an operate.
type simNode struct {
	s    *sim
	name string
	url  string
	http *http.Server
	in   chan net.Conn

	// Guarded by sim.mu.
	server   mode
	plugin   mode
	problem  string        // of the plugin
	has      bool          // its plugin has read the next key
	ready    bool          // and proven it
	skew     time.Duration // of its plugin's clock
	floor    string        // key_id below which the plugin does not go back
	writes   string        // key_id under which its API server writes
	strayed  bool          // its API server has another EncryptionConfiguration, with the first key alone, and no clients
	protocol string        // that its Lease says; empty: as it is
	conns    map[net.Conn]*simOperate

	operate *simOperate // nil: it does not run

	stateDir string
}

// simOperate is one run of an operate.
type simOperate struct {
	node  string
	dead  bool // guarded by sim.mu: it was killed, and reaches nobody
	end   context.CancelFunc
	ended chan struct{}
}

// simulate makes a control plane of n nodes whose operates run, and waits until they know each other.
func simulate(t *testing.T, n int, change func(*Config)) *sim {
	t.Helper()
	s := &sim{
		t: t, api: &api{objects: map[string]map[string]any{}, crd: true}, objects: map[string]simObject{}, refuses: map[string]bool{},
		requests: map[string]int{}, asked: map[string]bool{}, patched: map[string]int{}, on: map[state.Name]func(string){},
	}
	s.first = simKey(t, time.Now().Add(-100*time.Hour), 1)
	for i := range 20 {
		s.objects[fmt.Sprintf("/registry/secrets/app/s-%02d", i)] = simObject{s.first.String(), int64(i + 1)}
		s.objects[fmt.Sprintf("/registry/example.com/widgets/app/w-%02d", i)] = simObject{s.first.String(), int64(i + 21)}
	}
	s.revision = 100
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	for i := range n {
		node := &simNode{s: s, name: fmt.Sprintf("n%d", i+1), url: fmt.Sprintf("http://127.0.0.1:%d", 7001+i), in: make(chan net.Conn), conns: map[net.Conn]*simOperate{}}
		node.floor, node.writes, node.stateDir = s.first.String(), s.first.String(), filepath.Join(t.TempDir(), "state")
		node.http = &http.Server{Handler: node, ReadHeaderTimeout: time.Hour, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		s.nodes = append(s.nodes, node)
		serving.Go(func() { _ = node.http.Serve(node) })
		serving.Go(func() { node.live(ctx, time.Duration(i)*7*time.Second) })
	}
	t.Cleanup(func() {
		for _, node := range s.nodes {
			node.stop()
			node.sever(nil)
			_ = node.http.Close()
		}
		cancel()
		serving.Wait()
	})
	for _, node := range s.nodes {
		node.start(change)
	}
	return s
}

func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func simKey(t *testing.T, activates time.Time, fingerprint byte) envelope.KeyID {
	t.Helper()
	ckaID, err := envelope.NewCKAID(activates)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.KeyID{Ring: "ring", Version: string(ckaID), Fingerprint: [8]byte{fingerprint}}
}

// rotate makes the next key, which every plugin reads and proves, but those of the nodes that are named.
func (s *sim) rotate(but ...string) {
	at := time.Now().Add(simAnnounce).Truncate(time.Second)
	s.next = simKey(s.t, at, 2)
	s.set(func() {
		s.activates, s.second = at, s.next.String()
		for _, n := range s.nodes {
			n.has = !slices.Contains(but, n.name)
			n.ready = n.has
		}
	})
}

func (s *sim) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// wait lets time pass until the KeyRing has a state that ok accepts; for less than patience, which is simulated time.
func (s *sim) wait(what string, patience time.Duration, ok func(Status) bool) Status {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Second) {
		s.mu.Lock()
		last := s.last
		s.mu.Unlock()
		if ok(last) {
			return last
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %s; the KeyRing says %s: %s; it was %v", what, patience, last.State, last.Message, s.states)
		}
	}
}

func (s *sim) waitState(name state.Name, patience time.Duration) Status {
	s.t.Helper()
	return s.wait(string(name), patience, func(status Status) bool { return status.State == name })
}

func (s *sim) node(name string) *simNode {
	return s.nodes[slices.IndexFunc(s.nodes, func(n *simNode) bool { return n.name == name })]
}

// live is what an API server does by itself: it renews its Lease every ten seconds, asks its plugin each minute, and clients
// write through it.
func (n *simNode) live(ctx context.Context, offset time.Duration) {
	s := n.s
	pauseFor(ctx, offset)
	for i := 0; ctx.Err() == nil; i++ {
		s.mu.Lock()
		if n.server == up && s.etcd == up {
			s.api.set(func() {
				path := identityLeases + "/apiserver-" + n.name
				s.api.version++
				s.api.objects[path] = map[string]any{"kind": "Lease", "metadata": map[string]any{
					"name": "apiserver-" + n.name, "resourceVersion": fmt.Sprint(s.api.version), "labels": map[string]any{"apiserver.kubernetes.io/identity": "kube-apiserver", hostnameLabel: n.name},
				}}
			})
			if i%6 == 0 {
				n.notice()
			}
			if n.plugin == up && n.problem == "" && !n.strayed {
				s.revision++
				s.objects[fmt.Sprintf("/registry/secrets/app/%s-%d", n.name, i%5)] = simObject{n.writes, s.revision}
				s.objects[fmt.Sprintf("/registry/example.com/widgets/app/%s-%d", n.name, i%5)] = simObject{n.writes, s.revision}
			}
		}
		s.mu.Unlock()
		pauseFor(ctx, 10*time.Second)
	}
}

// notice: the API server asks its plugin. With the lock.
func (n *simNode) notice() {
	switch {
	case n.strayed:
		n.writes = n.s.first.String()
	case n.plugin == up:
		n.writes = n.current()
	}
}

// current is the key_id that the plugin names. With the lock.
func (n *simNode) current() string {
	if s := n.s; n.has && n.ready && !s.activates.IsZero() && !time.Now().Add(n.skew).Before(s.activates) {
		n.floor = s.second
	}
	return n.floor
}

// status is the plugin's answer.
func (n *simNode) status(ctx context.Context) (kmsplugin.StatusAnswer, error) {
	s := n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n.plugin {
	case refused:
		return kmsplugin.StatusAnswer{}, errors.New("connect: no such file or directory")
	case failing:
		return kmsplugin.StatusAnswer{}, errors.New("rpc error: code = Unavailable desc = the token is away")
	case hanging:
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return kmsplugin.StatusAnswer{}, ctx.Err()
	case up:
	}
	answer := kmsplugin.StatusAnswer{Version: "v2", Healthz: "ok", KeyID: n.current()}
	if n.problem != "" {
		answer.Healthz = n.problem
	}
	if answer.KeyID == s.first.String() {
		if n.has {
			answer.Pending = []health.Pending{{Key: s.next, Activates: s.activates, Ready: n.ready}}
		}
	} else if !s.retired {
		answer.Retained = []envelope.KeyID{s.first}
	}
	return answer, nil
}

// start runs the node's operate.
func (n *simNode) start(change func(*Config)) {
	s := n.s
	s.t.Helper()
	kubeconfig := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q}}],"users":[{"name":"u","user":{}}]}`, n.url)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	opts := migrate.Defaults()
	opts.Namespace, opts.Resources = namespace, []string{"secrets", "widgets.example.com"}
	run := &simOperate{node: n.name, ended: make(chan struct{})}
	cfg := Config{
		Ring: "ring", Node: n.name, Hostname: n.name, StateDir: n.stateDir, Version: "test",
		Interval: 30 * time.Second, Settle: simSettle, Recheck: time.Hour, Migrate: opts, Log: slog.New(slog.DiscardHandler),
		Etcd: sources.Options{Prefixes: []string{"/registry"}},
		Kube: kubeapi.Config{Kubeconfig: kubeconfig, UserAgent: n.name, Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return s.dial(ctx, run, address) }},
	}
	for _, node := range s.nodes {
		cfg.Kube.Servers = append(cfg.Kube.Servers, node.url)
	}
	if change != nil {
		change(&cfg)
	}
	o, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	o.ask = n.status
	o.open = func(context.Context) ([]evidence.Source, func() error, error) {
		return []evidence.Source{&simSource{s, run}}, func() error { return nil }, nil
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	run.end = cancel
	s.set(func() { n.operate = run })
	go func() {
		defer close(run.ended)
		o.Run(ctx)
	}()
}

// stop ends the node's operate in good order.
func (n *simNode) stop() {
	var run *simOperate
	n.s.set(func() { run, n.operate = n.operate, nil })
	if run != nil {
		run.end()
		<-run.ended
	}
}

// kill ends it as SIGKILL does: from this moment on it reaches nobody.
func (n *simNode) kill() {
	var run *simOperate
	n.s.set(func() { run, n.operate = n.operate, nil; run.dead = true })
	for _, node := range n.s.nodes {
		node.sever(run)
	}
	run.end()
}

// running reports an operate that ended by itself.
func (s *sim) running() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.operate == nil {
			continue
		}
		select {
		case <-n.operate.ended:
			s.t.Errorf("the operate of %s ended", n.name)
		default:
		}
	}
}

// away changes how the node's API server answers. What it was doing is cut off.
func (n *simNode) away(how mode) {
	n.s.set(func() {
		n.server = how
		if how == up {
			n.notice() // it starts
		}
	})
	if how == refused {
		n.sever(nil)
	}
}

// sever closes the connections to the node's API server, of one operate or of all.
func (n *simNode) sever(run *simOperate) {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	for conn, of := range n.conns {
		if run == nil || of == run {
			_ = conn.Close()
			delete(n.conns, conn)
		}
	}
}

// dial is how an operate reaches an API server.
func (s *sim) dial(ctx context.Context, run *simOperate, address string) (net.Conn, error) {
	at := slices.IndexFunc(s.nodes, func(n *simNode) bool { return n.url == "http://"+address })
	n := s.nodes[at]
	s.mu.Lock()
	gone := run.dead || n.server == refused
	client, server := net.Pipe()
	if !gone {
		n.conns[server] = run
	}
	s.mu.Unlock()
	if gone {
		s.set(func() { s.requests[run.node]++ })
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	select {
	case n.in <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (n *simNode) Accept() (net.Conn, error) {
	conn, ok := <-n.in
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// Close implements net.Listener.
func (n *simNode) Close() error { close(n.in); return nil }

// Addr implements net.Listener.
func (n *simNode) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// simSource is etcd as an operate reads it.
type simSource struct {
	s   *sim
	run *simOperate
}

// answers waits as the client of etcd does. It returns with the lock, if there is no error.
func (e *simSource) answers(ctx context.Context) error {
	e.s.mu.Lock()
	switch {
	case e.run.dead || e.s.etcd == refused || e.s.etcd == failing:
		e.s.mu.Unlock()
		return errors.New("etcd is away")
	case e.s.etcd == hanging:
		e.s.mu.Unlock()
		pauseFor(ctx, etcdWaits)
		return errors.New("etcd did not answer")
	}
	return nil
}

// Read implements evidence.Source.
func (e *simSource) Read(ctx context.Context, _ evidence.Way, each func([]evidence.Object) error) (evidence.Reading, error) {
	if err := e.answers(ctx); err != nil {
		return evidence.Reading{}, err
	}
	revision := e.s.revision
	var all []evidence.Object
	for key, o := range e.s.objects {
		all = append(all, o.object(key))
	}
	e.s.mu.Unlock()
	slices.SortFunc(all, func(a, b evidence.Object) int { return strings.Compare(string(a.Key), string(b.Key)) })
	if err := each(all); err != nil {
		return evidence.Reading{}, err
	}
	return evidence.Reading{
		Name: "etcd", Revision: revision, Cluster: "cafe", Term: 2, Prefixes: []string{"/registry"}, Unreadable: []string{},
		Members: []evidence.Member{{ID: "m1", Revision: revision, RaftIndex: uint64(revision), RaftTerm: 2}}, //nolint:gosec // small
	}, nil
}

// Find implements evidence.Source.
func (e *simSource) Find(ctx context.Context, key string) (evidence.Object, error) {
	if err := e.answers(ctx); err != nil {
		return evidence.Object{}, err
	}
	defer e.s.mu.Unlock()
	o, ok := e.s.objects[key]
	if !ok {
		return evidence.Object{}, evidence.ErrNotFound
	}
	return o.object(key), nil
}

func (o simObject) object(key string) evidence.Object {
	b := []byte(string(stored.KMSv2) + ":hsm-kms:")
	b = slices.Concat([]byte("k8s:enc:"), b)
	b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), "data")
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), o.key)
	b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), "wrapped")
	return evidence.Object{Key: []byte(key), Path: []byte(strings.TrimPrefix(key, "/registry/")), Value: b, Revision: o.revision}
}

// under counts the objects of clients under a key. With the lock.
func (s *sim) under(key string) (n int) {
	for _, o := range s.objects {
		if o.key == key {
			n++
		}
	}
	return n
}

// ServeHTTP is the API server of a node.
func (n *simNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := n.s
	s.mu.Lock()
	s.requests[r.UserAgent()]++
	s.asked[verbOf(r)+" "+r.URL.Path] = true
	server, etcd := n.server, s.etcd
	s.mu.Unlock()
	path := r.URL.Path
	switch {
	case server == hanging || etcd == hanging && !strings.HasPrefix(path, "/readyz"):
		_, _ = io.Copy(io.Discard, r.Body) // only then is it noticed that the client has gone
		<-r.Context().Done()
		return
	case server == failing || etcd != up && !strings.HasPrefix(path, "/readyz"):
		s.api.fail(w, http.StatusServiceUnavailable)
		return
	}
	answer := func(body string) { w.Header().Set("Content-Type", "application/json"); fmt.Fprint(w, body) }
	switch {
	case path == "/readyz/kms-providers":
		s.mu.Lock()
		defer s.mu.Unlock()
		if n.plugin != up || n.problem != "" {
			s.api.fail(w, http.StatusInternalServerError)
			return
		}
		answer("ok")
	case path == "/api/v1":
		answer(`{"kind":"APIResourceList","resources":[{"name":"secrets","namespaced":true},{"name":"events","namespaced":true}]}`)
	case path == "/apis/example.com":
		answer(`{"kind":"APIGroup","name":"example.com","versions":[{"groupVersion":"example.com/v1"}],"preferredVersion":{"groupVersion":"example.com/v1"}}`)
	case path == "/apis/example.com/v1":
		answer(`{"kind":"APIResourceList","resources":[{"name":"widgets","namespaced":true}]}`)
	case path == "/apis/apiregistration.k8s.io/v1/apiservices":
		answer(`{"kind":"APIServiceList","items":[]}`)
	case strings.Contains(path, "/secrets") || strings.Contains(path, "/widgets"):
		n.serveObject(w, r)
	default:
		n.serveShared(w, r)
	}
}

// serveObject is about what is encrypted.
func (n *simNode) serveObject(w http.ResponseWriter, r *http.Request) {
	s := n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(r.URL.Path, "/") // .../namespaces/NAMESPACE/RESOURCE[/NAME]
	at := slices.Index(parts, "namespaces")
	space, resource, name := parts[at+1], parts[at+2], strings.Join(parts[at+3:], "")
	folder := "/registry/" + map[string]string{"secrets": "secrets", "widgets": "example.com/widgets"}[resource] + "/" + space + "/"
	refuse := func(text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":%q,"code":403}`, text)
	}
	say := func(name string, o simObject) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":%q,"namespace":%q,"resourceVersion":"%d"}}`, name, space, o.revision)
	}
	switch o, there := s.objects[folder+name]; {
	case r.Method == http.MethodPost && s.refuses[""]:
		refuse("no canaries here")
	case n.plugin != up && r.Method != http.MethodGet && r.Method != http.MethodDelete:
		s.api.fail(w, http.StatusInternalServerError)
	case r.Method == http.MethodPost:
		s.revision++
		s.touched++
		name = fmt.Sprintf("hsm-kms-canary-%d", s.revision)
		o = simObject{n.writes, s.revision}
		s.objects[folder+name] = o
		say(name, o)
	case r.Method == http.MethodGet:
		var items []string
		for key, o := range s.objects {
			if rest, ok := strings.CutPrefix(key, folder+"hsm-kms-canary-"); ok {
				items = append(items, fmt.Sprintf(`{"metadata":{"name":"hsm-kms-canary-%s","namespace":%q,"resourceVersion":"%d"}}`, rest, space, o.revision))
			}
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","items":[%s]}`, strings.Join(items, ","))
	case !there:
		s.api.fail(w, http.StatusNotFound)
	case r.Method == http.MethodDelete:
		delete(s.objects, folder+name)
		say(name, o)
	case s.refuses[name]:
		refuse("nobody changes this one")
	default:
		s.touched++
		if !strings.HasPrefix(name, "hsm-kms-canary-") {
			s.patched[resource]++
		}
		n.rewrite(folder + name)
		say(name, s.objects[folder+name])
	}
}

// rewrite stores an object again, as the API server would write it now, if that is another form. With the lock.
func (n *simNode) rewrite(key string) {
	if o := n.s.objects[key]; o.key != n.writes {
		n.s.revision++
		n.s.objects[key] = simObject{n.writes, n.s.revision}
	}
}

// serveShared is about Leases, KeyRings and the like.
func (n *simNode) serveShared(w http.ResponseWriter, r *http.Request) {
	s := n.s
	s.mu.Lock()
	forked, protocol := s.forked, s.node(r.UserAgent()).protocol
	s.mu.Unlock()
	if forked && strings.HasSuffix(r.URL.Path, "/"+leaderLease) {
		r.URL.Path += "-" + n.name
	}
	if strings.HasSuffix(r.URL.Path, "/"+nodeLease(r.UserAgent())) && protocol != "" && r.Method != http.MethodGet {
		r.Body = replaced(r.Body, fmt.Sprintf(`\"protocol\":%d`, 1), `\"protocol\":`+protocol)
	}
	if r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/status") {
		var body struct{ Status Status }
		var text []byte
		r.Body, text = peeked(r.Body)
		if err := json.Unmarshal(text, &body); err != nil {
			s.t.Error(err)
		}
		defer s.saw(body.Status)
	}
	s.api.ServeHTTP(w, r)
}

// saw checks each status that the KeyRing gets. A key that may be written under is never retirable.
func (s *sim) saw(status Status) {
	s.mu.Lock()
	s.last = status
	if len(s.states) == 0 || s.states[len(s.states)-1] != status.State {
		s.states = append(s.states, status.State)
	}
	for _, key := range status.Retirable {
		if key != s.first.String() {
			s.t.Errorf("%s is retirable", key)
		}
		if n := s.under(key); n > 0 {
			s.t.Errorf("the old key is retirable, and %d objects are under it", n)
		}
		for _, n := range s.nodes {
			if n.server == up && n.writes == key || n.current() == key {
				s.t.Errorf("the old key is retirable, and %s writes under it", n.name)
			}
		}
	}
	do := s.on[status.State]
	delete(s.on, status.State)
	s.mu.Unlock()
	if do != nil {
		do(status.Leader)
	}
}
