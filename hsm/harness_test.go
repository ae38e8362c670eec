package hsm_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

const ringName = "kube-secrets"

// bench is one SoftHSM token behind a faulty module, with one key in its ring, and what runs on it.
type bench struct {
	t      *testing.T
	token  *softhsm.Token
	module *faultp11.Module
	common hsm.Config
	cfg    hsm.TokenConfig
	others []hsm.TokenConfig // tokens after the first
	log    *logLines
	set    *hsm.Set
	ring   *envelope.Ring
	stop   func()
}

// newBench makes the token and the key; change may alter the configuration before anything runs.
func newBench(t *testing.T, change func(*hsm.Config, *hsm.TokenConfig)) *bench {
	t.Helper()
	made, err := madeTokens()
	if err != nil {
		t.Fatal(err)
	}
	token, err := made.empty.CopyTo(filepath.Join(t.TempDir(), "softhsm"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, token: token, log: &logLines{}}
	b.module = faultp11.New(t, b.token.Module, faultp11.Options{SoftHSMConf: b.token.Conf()})
	b.common = hsm.WithWorkerProgram(hsm.Config{
		Ring: ringName, Profile: envelope.AESGCM, StateDir: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, made.worker)
	b.cfg = hsm.TokenConfig{
		Name: "hsm-a", Module: b.module.Path(), Label: "k8s", PINFile: b.token.PINFile,
		MaxSessions: 8, CallTimeout: 5 * time.Second, // slow is no error, and a busy machine is slow
	}
	if change != nil {
		change(&b.common, &b.cfg)
	}
	if b.common.Profile != envelope.AESGCM {
		b.generate(time.Now())
	} else if err := made.withKey.CopyNew(b.token); err != nil {
		t.Fatal(err)
	}
	return b
}

// tokens are what every bench gets a copy of: to initialise a token and to make a key on it starts four processes.
type tokens struct {
	dir            string
	worker         string         // the program of the workers; empty: the test binary
	empty, withKey *softhsm.Token // the same token, without a key and with the first of ringName for profile aes-gcm
}

// madeTokens makes them once. TestMain removes the folder.
var madeTokens = sync.OnceValues(func() (made tokens, err error) {
	if made.dir, err = os.MkdirTemp("", "hsm-tokens-"); err != nil {
		return made, err
	}
	ctx := context.Background()
	if testing.Short() && testworker.RaceEnabled {
		if made.worker, err = testworker.Plain(made.dir); err != nil {
			return made, err
		}
	}
	if made.empty, err = softhsm.New(ctx, filepath.Join(made.dir, "empty"), "k8s", ""); err != nil {
		return made, err
	}
	if made.withKey, err = made.empty.CopyTo(filepath.Join(made.dir, "with-key")); err != nil {
		return made, err
	}
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		return made, err
	}
	_, err = hsm.Generate(ctx,
		hsm.WithWorkerProgram(hsm.Config{Ring: ringName, Profile: envelope.AESGCM, StateDir: made.dir, Log: slog.New(slog.DiscardHandler)}, made.worker),
		hsm.TokenConfig{
			Name: "hsm-a", Module: made.empty.Module, Label: "k8s", PINFile: made.withKey.PINFile, MaxSessions: 8, CallTimeout: 20 * time.Second,
			Env: map[string]string{"SOFTHSM2_CONF": made.withKey.Conf()},
		}, id)
	return made, err
})

// impatient has a short callTimeout, for tests in which calls hang.
func impatient(_ *hsm.Config, cfg *hsm.TokenConfig) { cfg.CallTimeout = 500 * time.Millisecond }

// generate adds a version to the ring.
func (b *bench) generate(activation time.Time) []byte {
	b.t.Helper()
	id, err := envelope.NewCKAID(activation)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := hsm.Generate(b.t.Context(), b.common, b.cfg, id); err != nil {
		b.t.Fatal(err)
	}
	return id
}

// start runs the token and reads and proves the ring.
func (b *bench) start() *bench {
	b.t.Helper()
	b.run()
	for _, err := range b.set.Connected(b.within(20 * time.Second)) {
		if err != nil {
			b.t.Fatal(err)
		}
	}
	if err := b.ring.Refresh(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	if err := b.ring.Exercise(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return b
}

// run starts the token without waiting for it.
func (b *bench) run() {
	b.t.Helper()
	set := hsm.Open(b.common, append([]hsm.TokenConfig{b.cfg}, b.others...))
	b.set = set
	b.ring = envelope.NewRing(envelope.RingConfig{Name: ringName, Profile: b.common.Profile}, set)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { set.Run(ctx) })
	b.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	b.t.Cleanup(func() {
		b.module.Clear()
		b.stop()
		if b.t.Failed() {
			b.t.Logf("log of the token:\n%s", b.log)
		}
	})
}

func (b *bench) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), d)
	b.t.Cleanup(cancel)
	return ctx
}

// current is the key_id to seal under.
func (b *bench) current() envelope.KeyID {
	b.t.Helper()
	v := b.ring.Advance()
	if v.Current == nil {
		b.t.Fatalf("no current key: %v", v.Problem)
	}
	return v.Current.ID
}

// eventually tries f until it succeeds; the last error fails the test after d.
func (b *bench) eventually(d time.Duration, f func() error) {
	b.t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %s: %v", d, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// logLines collects a log.
type logLines struct {
	mu   sync.Mutex
	text []byte
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
