package health

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// fakeRing is a ring whose outcomes a test sets.
type fakeRing struct {
	mu         sync.Mutex
	view       envelope.View
	exercise   func(context.Context) error
	refresh    func(context.Context) error
	exercises  []time.Time
	refreshes  []time.Time
	onExercise func(*fakeRing) // with mu held
}

func (r *fakeRing) Refresh(ctx context.Context) error {
	r.mu.Lock()
	r.refreshes = append(r.refreshes, time.Now())
	f := r.refresh
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx)
}

func (r *fakeRing) Exercise(ctx context.Context) error {
	r.mu.Lock()
	r.exercises = append(r.exercises, time.Now())
	f := r.exercise
	if r.onExercise != nil {
		r.onExercise(r)
	}
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx)
}

// Advance chooses by the clock among the versions set, as the real ring does for ready ones.
func (r *fakeRing) Advance() envelope.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	view := r.view
	view.Versions = append([]envelope.Version(nil), r.view.Versions...)
	for i := range view.Versions {
		v := &view.Versions[i]
		if v.State == envelope.Pending && v.Ready && !v.Activation.After(time.Now()) {
			v.State = envelope.Current
			view.Current = v
		}
	}
	return view
}

func (r *fakeRing) set(f func(*fakeRing)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

func (r *fakeRing) fail(err error) {
	r.set(func(r *fakeRing) { r.exercise = func(context.Context) error { return err } })
}

func (r *fakeRing) heal() { r.set(func(r *fakeRing) { r.exercise = nil }) }

func (r *fakeRing) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.exercises)
}

// version makes one version of the ring.
func version(t *testing.T, activation time.Time, state envelope.State) envelope.Version {
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
		State: state, Works: true, Ready: true,
	}
}

// ringOf is a ring with one current key, proven.
func ringOf(t *testing.T) (*fakeRing, envelope.KeyID) {
	t.Helper()
	v := version(t, time.Now().Add(-time.Hour), envelope.Current)
	return &fakeRing{view: envelope.View{Versions: []envelope.Version{v}, Current: &v}}, v.ID
}

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

func (l *logBuffer) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(l.b.Bytes()) {
		lines = append(lines, string(line))
	}
	return lines
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// start runs a Health until the test ends. No pause is shortened at random, so that a test can tell when a probe comes.
func start(t *testing.T, cfg Config) *Health {
	t.Helper()
	cfg.Random = func(time.Duration) time.Duration { return 0 }
	h := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return h
}
