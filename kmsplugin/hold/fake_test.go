package hold

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// fakeRing is a ring of keys in memory. Its HSM fails with err, and takes delay for each call.
type fakeRing struct {
	mu    sync.Mutex
	view  envelope.View
	err   error
	byKey map[envelope.KeyID]error // of one key
	read  []envelope.View          // of rings that are only read
	delay time.Duration
	calls int // that reached the HSM
	opens int
}

var bg = context.Background()

var errDeadline = context.DeadlineExceeded

func newKey(t testing.TB, ring string, activation time.Time) envelope.Version {
	t.Helper()
	ckaID, err := envelope.NewCKAID(activation)
	if err != nil {
		t.Fatal(err)
	}
	name, err := envelope.VersionOf(ckaID)
	if err != nil {
		t.Fatal(err)
	}
	id := envelope.KeyID{Ring: ring, Version: name}
	_, _ = rand.Read(id.Fingerprint[:])
	return envelope.Version{Key: envelope.Key{ID: id, CKAID: ckaID, Activation: activation}, State: envelope.Current, Works: true, Ready: true}
}

// newRing is a ring with one current key.
func newRing(t testing.TB) (*fakeRing, envelope.KeyID) {
	r := &fakeRing{byKey: map[envelope.KeyID]error{}}
	v := newKey(t, "ring", time.Now().Add(-time.Hour))
	r.show(v)
	return r, v.ID
}

// show has the ring hold these versions; the current one is current.
func (r *fakeRing) show(versions ...envelope.Version) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.view = envelope.View{Ring: "ring", Versions: versions, LastRead: time.Now()}
	for i := range versions {
		if versions[i].State == envelope.Current {
			r.view.Current = &versions[i]
		}
	}
}

func (r *fakeRing) fail(err error) { r.mu.Lock(); r.err = err; r.mu.Unlock() }
func (r *fakeRing) failKey(id envelope.KeyID, err error) {
	r.mu.Lock()
	r.byKey[id] = err
	r.mu.Unlock()
}
func (r *fakeRing) slow(d time.Duration)  { r.mu.Lock(); r.delay = d; r.mu.Unlock() }
func (r *fakeRing) asked() (n, opens int) { r.mu.Lock(); defer r.mu.Unlock(); return r.calls, r.opens }
func (r *fakeRing) Views() []envelope.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]envelope.View{r.view}, r.read...)
}

// also has a ring that is only read hold this version.
func (r *fakeRing) also(v envelope.Version) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = append(r.read, envelope.View{Ring: v.ID.Ring, Versions: []envelope.Version{v}, LastRead: time.Now()})
}

// call is one call into the HSM.
func (r *fakeRing) call(ctx context.Context, id envelope.KeyID) error {
	r.mu.Lock()
	r.calls++
	err, delay := r.err, r.delay
	if err == nil {
		err = r.byKey[id]
	}
	served := false
	versions := r.view.Versions
	for _, view := range r.read {
		versions = slices.Concat(versions, view.Versions)
	}
	for _, v := range versions {
		served = served || v.ID == id && v.State != envelope.Refused
	}
	r.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err == nil && !served {
		err = envelope.ErrUnknownKey
	}
	return err
}

func kek(id envelope.KeyID) cipher.AEAD {
	key := sha256.Sum256([]byte("kek" + id.String()))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (r *fakeRing) Seal(ctx context.Context, id envelope.KeyID, dek []byte) ([]byte, error) {
	if err := r.call(ctx, id); err != nil {
		return nil, err
	}
	nonce := make([]byte, envelope.NonceSize)
	_, _ = rand.Read(nonce)
	return envelope.Envelope{Profile: envelope.AESGCM, Unique: nonce, Sealed: kek(id).Seal(nil, nonce, dek, nil)}.Marshal(), nil
}

func (r *fakeRing) Open(ctx context.Context, keyID string, sealed []byte) ([]byte, error) {
	id, isHold, err := envelope.ParseUsedKeyID(keyID)
	if err != nil {
		return nil, err
	}
	e, err := envelope.Parse(sealed)
	if err != nil {
		return nil, err
	}
	if err := r.call(ctx, id); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.opens++
	r.mu.Unlock()
	if isHold {
		key := holdKey(id, e.Day())
		return envelope.OpenHold(&key, id, sealed)
	}
	dek, err := kek(id).Open(nil, e.Unique, e.Sealed, nil)
	if err != nil {
		return nil, envelope.ErrUnauthentic
	}
	return dek, nil
}

func holdKey(id envelope.KeyID, day envelope.Day) envelope.HoldKey {
	return sha256.Sum256(fmt.Appendf(nil, "hold %s %d", id, day))
}

func (r *fakeRing) HoldKey(ctx context.Context, id envelope.KeyID, day envelope.Day) (envelope.HoldKey, error) {
	if err := r.call(ctx, id); err != nil {
		return envelope.HoldKey{}, err
	}
	return holdKey(id, day), nil
}

func (r *fakeRing) Refresh(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *fakeRing) Advance() envelope.View { return r.Views()[0] }

func (r *fakeRing) Exercise(ctx context.Context) error {
	view := r.Advance()
	if view.Current == nil {
		return envelope.ErrRingEmpty
	}
	return r.call(ctx, view.Current.ID)
}

// rig is a hold with its health, in a bubble.
type rig struct {
	*Hold
	health *health.Health
	ring   *fakeRing
	id     envelope.KeyID
	dir    string
	stop   func()
	clock  *clock

	mu     sync.Mutex
	events []Event
	log    *bytes.Buffer
}

// clock is CLOCK_BOOTTIME and the time of day: the bubble's, and what a test adds.
type clock struct {
	began           time.Time
	suspended, wall atomic.Int64 // time.Duration
}

func (c *clock) boot() time.Duration {
	return time.Hour + time.Since(c.began) + time.Duration(c.suspended.Load())
}

func (c *clock) now() time.Time {
	return time.Now().Round(0).Add(time.Duration(c.suspended.Load() + c.wall.Load()))
}

// suspend has the machine sleep for d; set is the time of day off by d.
func (c *clock) suspend(d time.Duration) { c.suspended.Store(int64(d)) }
func (c *clock) set(d time.Duration)     { c.wall.Store(int64(d)) }

// start runs a hold on the ring until the test ends; change may change its configuration.
func start(t *testing.T, ring *fakeRing, id envelope.KeyID, dir string, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{ring: ring, id: id, dir: dir, clock: &clock{began: time.Now()}, log: &bytes.Buffer{}}
	cfg := Config{
		Ring: ring, StateDir: dir, Limit: time.Hour, CallTimeout: 2 * time.Second, Now: r.clock.now, Boot: r.clock.boot, BootID: "boot",
		Logger: slog.New(slog.NewTextHandler(r, nil)), Record: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	r.Hold = New(cfg)
	r.health = health.New(health.Config{Ring: ring, Hold: r.Hold, Random: func(time.Duration) time.Duration { return 0 }})
	ctx, cancel := context.WithCancel(bg)
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	running.Go(func() { r.health.Run(ctx) })
	once := sync.OnceFunc(func() { cancel(); running.Wait() })
	r.stop = once
	t.Cleanup(once)
	<-r.health.First()
	at(2 * time.Second)
	return r
}

func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

// at lets time pass and everything that is due happen.
func at(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// count is how often an event happened.
func (r *rig) count(name string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Name == name {
			n++
		}
	}
	return n
}

// write seals a new DEK.
func (r *rig) write(t *testing.T) (Answer, []byte) {
	t.Helper()
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	a, err := r.Seal(bg, r.id, dek)
	if err != nil {
		t.Fatalf("Encrypt: %v", err)
	}
	return a, dek
}

// read opens what write returned.
func (r *rig) read(a Answer) ([]byte, error) {
	got, err := r.Open(bg, a.KeyID, a.Bytes)
	return got.Bytes, err
}

func (r *rig) mustRead(t *testing.T, a Answer, dek []byte) {
	t.Helper()
	if got, err := r.read(a); err != nil || !bytes.Equal(got, dek) {
		t.Fatalf("Decrypt under %s: %x, %v", a.KeyID, got, err)
	}
}

// status is what Status would say: key_id and problem.
func (r *rig) status() (string, error) {
	report := r.health.Report()
	if report.Key.IsZero() {
		return "", report.Problem
	}
	if r.Named() {
		return report.Key.HoldString(), report.Problem
	}
	return report.Key.String(), report.Problem
}

func (r *rig) mustStatus(t *testing.T, keyID string, problem error) {
	t.Helper()
	got, err := r.status()
	if got != keyID || (err == nil) != (problem == nil) || problem != nil && !bytes.Contains([]byte(err.Error()), []byte(problem.Error())) {
		t.Errorf("Status = %q, %v; want %q, %v", got, err, keyID, problem)
	}
}
