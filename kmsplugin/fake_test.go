package kmsplugin

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// fakeRing is a ring without an HSM. Its hooks replace an outcome; a nil hook is success.
type fakeRing struct {
	mu       sync.Mutex
	view     envelope.View
	exercise func(context.Context) error
	seal     func(context.Context, envelope.KeyID, []byte) ([]byte, error)
	open     func(context.Context, string, []byte) ([]byte, error)
}

func (r *fakeRing) hooks() fakeRing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fakeRing{view: r.view, exercise: r.exercise, seal: r.seal, open: r.open}
}

func (r *fakeRing) set(f func(*fakeRing)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *fakeRing) Refresh(context.Context) error { return nil }
func (r *fakeRing) Advance() envelope.View        { h := r.hooks(); return h.view }

func (r *fakeRing) Exercise(ctx context.Context) error {
	if f := r.hooks().exercise; f != nil {
		return f(ctx)
	}
	return nil
}

func (r *fakeRing) Seal(ctx context.Context, id envelope.KeyID, dek []byte) ([]byte, error) {
	if f := r.hooks().seal; f != nil {
		return f(ctx, id, dek)
	}
	return append([]byte("sealed:"), dek...), nil
}

func (r *fakeRing) Open(ctx context.Context, keyID string, sealed []byte) ([]byte, error) {
	if f := r.hooks().open; f != nil {
		return f(ctx, keyID, sealed)
	}
	dek, found := bytes.CutPrefix(sealed, []byte("sealed:"))
	if !found {
		return nil, envelope.ErrMalformed
	}
	return bytes.Clone(dek), nil
}

// newVersion makes a proven current version of the ring "ring".
func newVersion(t testing.TB, activation time.Time) envelope.Version {
	t.Helper()
	ckaID, err := envelope.NewCKAID(activation)
	if err != nil {
		t.Fatal(err)
	}
	name, err := envelope.VersionOf(ckaID)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.Version{
		Key:   envelope.Key{ID: envelope.KeyID{Ring: "ring", Version: name}, CKAID: ckaID, Activation: activation},
		State: envelope.Current, Works: true, Ready: true,
	}
}

// newRing is a ring with one proven current key.
func newRing(t testing.TB) (*fakeRing, envelope.KeyID) {
	v := newVersion(t, time.Now().Add(-time.Hour))
	return &fakeRing{view: envelope.View{Versions: []envelope.Version{v}, Current: &v}}, v.ID
}

// records keeps what a Recorder and Metrics are told.
type records struct {
	mu      sync.Mutex
	ops     []Operation
	counted map[answer]int
	err     error
	status  int
	refused int
	dropped int
}

func (r *records) Record(_ context.Context, op Operation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
	return r.err
}

// answer is what Metrics are told of one.
type answer struct {
	operation string
	code      codes.Code
}

func (r *records) Answered(operation string, code codes.Code, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counted == nil {
		r.counted = map[answer]int{}
	}
	r.counted[answer{operation, code}]++
	if operation == OperationStatus {
		r.status++
	}
}

func (r *records) Probed(error, time.Duration) {}
func (r *records) PeerRefused()                { r.mu.Lock(); r.refused++; r.mu.Unlock() }
func (r *records) ConnectionDropped()          { r.mu.Lock(); r.dropped++; r.mu.Unlock() }

func (r *records) last() Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ops) == 0 {
		return Operation{}
	}
	return r.ops[len(r.ops)-1]
}

func (r *records) answers(operation string, code codes.Code) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counted[answer{operation, code}]
}

func (r *records) count() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.ops) }

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// running is a plugin that serves on a real socket.
type running struct {
	*Plugin
	path   string
	cancel context.CancelFunc
	done   chan error
}

// run serves until the test ends, and returns when the first probe is done.
func run(t testing.TB, o Options) *running {
	t.Helper()
	r := &running{Plugin: New(o), path: filepath.Join(t.TempDir(), "s"), done: make(chan error, 1)}
	lis, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		r.done <- r.Run(ctx, lis)
	}()
	t.Cleanup(func() {
		cancel()
		<-finished
	})
	<-r.health.First()
	return r
}

// client connects as kube-apiserver does.
func client(t testing.TB, path string) kmsapi.KeyManagementServiceClient {
	t.Helper()
	return kmsapi.NewKeyManagementServiceClient(connect(t, path))
}

func connect(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// eventually polls for what has no event, with a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
