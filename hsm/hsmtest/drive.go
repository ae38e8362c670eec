package hsmtest

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// Driver is a running Set with its ring, and the counts of its PKCS#11 calls.
type Driver struct {
	Set    *hsm.Set
	Ring   *envelope.Ring
	Calls  *Calls
	t      *testing.T
	common hsm.Config
	stop   func()
}

// Start opens and runs the token, without waiting for it. It ends with the test, or with Close.
func Start(t *testing.T, s Subject) *Driver {
	t.Helper()
	d := &Driver{t: t, common: s.Common, Calls: &Calls{counts: map[string]int{}}}
	log := &lines{}
	s.Common.Observer = d.Calls
	s.Common.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	set := hsm.Open(s.Common, []hsm.TokenConfig{s.Token})
	d.Set = set
	d.Ring = envelope.NewRing(envelope.RingConfig{Name: s.Common.Ring, Profile: s.Common.Profile}, set)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { set.Run(ctx) })
	d.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(func() {
		d.stop()
		if t.Failed() {
			t.Logf("log of the token:\n%s", log)
		}
	})
	return d
}

// Close ends the set; the module is finalised and may be opened again.
func (d *Driver) Close() { d.stop() }

// Ready connects, reads the ring and proves its current key, whose key_id it returns.
func (d *Driver) Ready() envelope.KeyID {
	d.t.Helper()
	d.mustConnect()
	if err := d.Ring.Refresh(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	if err := d.Ring.Exercise(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	return d.Current()
}

// Current is the key_id to seal under.
func (d *Driver) Current() envelope.KeyID {
	d.t.Helper()
	view := d.Ring.Advance()
	if view.Current == nil {
		d.t.Fatalf("no current key: %v", view.Problem)
	}
	return view.Current.ID
}

// RoundTrip seals and opens a DEK under id.
func (d *Driver) RoundTrip(ctx context.Context, id envelope.KeyID) error {
	return envelope.Prove(ctx, d.Set, d.profile(), id)
}

// Eventually tries f until it succeeds; the last error fails the test after limit. There is no event to wait for:
// what heals is a module.
func (d *Driver) Eventually(limit time.Duration, what string, f func() error) time.Duration {
	d.t.Helper()
	start := time.Now()
	for {
		err := f()
		switch took := time.Since(start); {
		case err == nil:
			return took
		case took > limit:
			d.t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (d *Driver) profile() envelope.Profile { return d.common.Profile }

func (d *Driver) mustConnect() {
	d.t.Helper()
	for _, err := range d.connected() {
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// connected waits for the first attempt.
func (d *Driver) connected() []error {
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	return d.Set.Connected(ctx)
}

func (d *Driver) mustKeys() []envelope.Key {
	d.t.Helper()
	keys, err := d.Set.Keys(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return keys
}

// Calls counts PKCS#11 calls. Safe for concurrent use.
type Calls struct {
	mu       sync.Mutex // guards the fields below
	counts   map[string]int
	sessions int
	most     int
}

var _ envelope.Observer = (*Calls)(nil)

// HSMCall implements envelope.Observer.
func (c *Calls) HSMCall(_, function, result string, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[function]++
	switch {
	case result != "CKR_OK":
	case function == "C_OpenSession":
		c.sessions++
		c.most = max(c.most, c.sessions)
	case function == "C_CloseSession":
		c.sessions--
	case function == "C_Finalize":
		c.sessions = 0
	}
}

// Of is how often function was called.
func (c *Calls) Of(function string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[function]
}

// MostSessions is how many were open at once at most.
func (c *Calls) MostSessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex // guards the fields below
	text []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
