package capacity

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
	"github.com/hsm-kms/hsm-kms/internal/capacity"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
)

// What the formulas say is called, counted in a module in front of a real token.
func TestCallsOfThePlugin(t *testing.T) {
	t.Parallel()
	for _, profile := range []envelope.Profile{envelope.AESGCM, envelope.HMACKDF} {
		t.Run(profile.String(), func(t *testing.T) {
			t.Parallel()
			c := newCounted(t, profile)
			c.addKey(t)
			c.addKey(t)
			c.module.ResetCounters()
			c.start(t)
			p := asked()
			if profile == envelope.AESGCM {
				c.exactly(t, "a connection to a ring of two keys", startCalls(2))
			} else {
				c.atMost(t, "a connection to a ring of two keys", startCalls(2))
			}
			c.refresh(t)
			c.exactly(t, "reading a ring of two keys", p.Refresh)
			c.exercise(t)
			c.exactly(t, "the first probe, which opens a session", p.Probe()+1)
			c.exercise(t)
			c.exactly(t, "a probe", p.Probe())

			sealed, err := c.ring.Seal(t.Context(), c.current(t), make([]byte, 32))
			if err != nil {
				t.Fatal(err)
			}
			c.exactly(t, "a seal", p.Seal)
			if _, err := c.ring.Open(t.Context(), c.current(t).String(), sealed); err != nil {
				t.Fatal(err)
			}
			c.exactly(t, "an open", p.Open)
		})
	}
}

// A key that is new costs its attributes, its fingerprint and its proof.
func TestCallsOfANewKey(t *testing.T) {
	t.Parallel()
	for profile, more := range map[envelope.Profile]float64{envelope.AESGCM: 0, envelope.HMACKDF: -2} {
		t.Run(profile.String(), func(t *testing.T) {
			t.Parallel()
			c := newCounted(t, profile)
			c.addKey(t)
			var calls [2]float64 // to connect, read and exercise once more: with one key, with two
			for i := range calls {
				c.module.ResetCounters()
				c.start(t)
				c.refresh(t)
				c.exercise(t)
				calls[i] = c.take()
				c.stop()
				c.addKey(t)
			}
			p := asked()
			// It is new in the connection and known in the reading after it. Only a pending key is proven beside the current
			// one, which here is itself.
			if got, want := calls[1]-calls[0], p.ForKey()-p.Probe()+capacity.ForRefresh(2)-capacity.ForRefresh(1)+more; got != want {
				t.Errorf("a new key costs %v calls, want %v", got, want)
			}
		})
	}
}

// counted is a token whose calls are counted.
type counted struct {
	module *faultp11.Module
	common hsm.Config
	token  hsm.TokenConfig
	ring   *envelope.Ring
	stop   func()
}

func newCounted(t *testing.T, profile envelope.Profile) *counted {
	t.Helper()
	token := softhsm.ForTest(t, "k8s")
	module := faultp11.New(t, token.Module, faultp11.Options{SoftHSMConf: token.Conf()})
	return &counted{
		module: module,
		common: hsm.Config{Ring: "ring", Profile: profile, StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)},
		token:  hsm.TokenConfig{Name: "counted", Module: module.Path(), Label: token.Label, PINFile: token.PINFile, MaxSessions: 1, CallTimeout: callTimeout},
	}
}

// addKey makes a key that is due, later than the one before.
func (c *counted) addKey(t *testing.T) {
	t.Helper()
	id, err := envelope.NewCKAID(time.Now().Add(-time.Second))
	if err == nil {
		_, err = hsm.Generate(t.Context(), c.common, c.token, id)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	if worker.Asked(os.Args) {
		fmt.Fprintln(os.Stderr, worker.Main())
		os.Exit(2)
	}
	os.Exit(m.Run())
}

func (c *counted) start(t *testing.T) {
	t.Helper()
	set := hsm.Open(c.common, []hsm.TokenConfig{c.token})
	c.stop = set.Start(t.Context())
	t.Cleanup(c.stop)
	if err := set.Connected(t.Context())[0]; err != nil {
		t.Fatal(err)
	}
	c.ring = envelope.NewRing(envelope.RingConfig{Name: c.common.Ring, Profile: c.common.Profile}, set)
}

func (c *counted) refresh(t *testing.T) {
	t.Helper()
	if err := c.ring.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *counted) exercise(t *testing.T) {
	t.Helper()
	if err := c.ring.Exercise(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (c *counted) current(t *testing.T) envelope.KeyID {
	t.Helper()
	view := c.ring.View()
	if view.Current == nil {
		t.Fatal(view.Problem)
	}
	return view.Current.ID
}

// take gives the calls since the last look.
func (c *counted) take() float64 {
	n := c.module.TotalCalls()
	c.module.ResetCounters()
	return float64(n)
}

func (c *counted) exactly(t *testing.T, what string, want float64) {
	t.Helper()
	if got := c.take(); got != want {
		t.Errorf("%s: %v calls, want %v", what, got, want)
	}
}

func (c *counted) atMost(t *testing.T, what string, most float64) {
	t.Helper()
	if got := c.take(); got > most || got == 0 {
		t.Errorf("%s: %v calls, want at most %v", what, got, most)
	}
}
