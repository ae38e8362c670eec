package versions

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/p11/p11test"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/testworker"
)

const ringName = "kube-secrets"

// token is a SoftHSM token with a ring on it, behind a module that counts.
type token struct {
	module *faultp11.Module
	store  *softhsm.Token
	state  string
}

// newToken makes a token with that many versions, an hour apart, the last of which became current an hour ago.
func newToken(tb testing.TB, versions int) *token {
	tb.Helper()
	t := &token{store: softhsm.ForTest(tb, "k8s"), state: tb.TempDir()}
	t.module = faultp11.New(tb, t.store.Module, faultp11.Options{SoftHSMConf: t.store.Conf()})
	var activations []time.Time
	for i := range versions {
		activations = append(activations, time.Now().Add(time.Duration(i-versions)*time.Hour))
	}
	t.generate(tb, activations...)
	return t
}

// generate makes versions in one session, through another instance of the module, as another process would.
func (t *token) generate(tb testing.TB, activations ...time.Time) {
	tb.Helper()
	check := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	pin, err := t.store.PIN()
	check(err)
	other := faultp11.New(tb, t.store.Module, faultp11.Options{SoftHSMConf: t.store.Conf()})
	ctx := pkcs11.New(other.Path())
	defer ctx.Destroy()
	check(ctx.Initialize())
	defer func() { check(ctx.Finalize()) }()
	slots, err := ctx.GetSlotList(true)
	check(err)
	session, err := ctx.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	check(err)
	check(ctx.Login(session, pkcs11.CKU_USER, pin))
	for _, activation := range activations {
		id, err := envelope.NewCKAID(activation)
		check(err)
		_, err = ctx.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, p11test.AESKey(ringName, id))
		check(err)
	}
}

// start connects, reads the ring and exercises it, as serve does. stop ends it.
func (t *token) start(tb testing.TB) (ring *envelope.Ring, stop func()) {
	tb.Helper()
	common := hsm.Config{Ring: ringName, Profile: envelope.AESGCM, StateDir: t.state, Log: slog.New(slog.DiscardHandler)}
	set := hsm.Open(common, []hsm.TokenConfig{{
		Name: "hsm-a", Module: t.module.Path(), Label: "k8s", PINFile: t.store.PINFile, MaxSessions: 8, CallTimeout: 2 * time.Second,
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { set.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	for _, err := range set.Connected(ctx) {
		if err != nil {
			stop()
			tb.Fatal(err)
		}
	}
	ring = envelope.NewRing(envelope.RingConfig{Name: ringName, Profile: envelope.AESGCM}, set)
	for _, do := range []func(context.Context) error{ring.Refresh, ring.Exercise} {
		if err := do(ctx); err != nil {
			stop()
			tb.Fatal(err)
		}
	}
	return ring, stop
}

// calls are what the module saw since it was last asked.
func (t *token) calls() map[string]int {
	seen := map[string]int{"all": t.module.TotalCalls()}
	for _, fn := range []string{"C_Login", "C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt", "C_FindObjects", "C_GetAttributeValue", "C_OpenSession"} {
		seen[fn] = t.module.Calls(fn)
	}
	t.module.ResetCounters()
	return seen
}

const many = 400

// perKey is how many C_GetAttributeValue the inspection of one key takes: its attributes in one request and its CKA_ID in
// another, each with the lengths first. Less is better: on a network HSM a start waits for them.
const perKey = 4

// TestFourHundredVersions: what each thing costs the HSM, in calls.
func TestFourHundredVersions(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	tok := newToken(t, many)
	ring, stop := tok.start(t)
	defer stop()
	atMost := func(what string, bounds map[string]int) {
		t.Helper()
		seen := tok.calls()
		t.Log(what, seen)
		for fn, bound := range bounds {
			if seen[fn] > bound {
				t.Errorf("%s: %d calls of %s, want at most %d", what, seen[fn], fn, bound)
			}
		}
	}
	do := func(f func(context.Context) error) {
		t.Helper()
		if err := f(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Each key shows once which it is, and that it opens what it sealed; the self-test and the exercise are of one. The keys are
	// read on up to 8 sessions beside the one of the login, and the self-test has up to 4.
	atMost("the start", map[string]int{"C_Login": 1, "C_Encrypt": many + 3, "C_Decrypt": many + 7, "C_OpenSession": 13, "C_GetAttributeValue": perKey * many})
	view := ring.Advance()
	if len(view.Versions) != many || view.Current == nil || view.Current.ID != view.Versions[many-1].ID || view.Problem != nil {
		t.Fatalf("%d versions, current %v, %v", len(view.Versions), view.Current, view.Problem)
	}

	// A key that is known is asked for its CKA_ID and no more, on half of the sessions.
	do(ring.Refresh)
	atMost("a re-read", map[string]int{"C_EncryptInit": 0, "C_DecryptInit": 0, "C_Login": 0, "C_OpenSession": 4, "C_GetAttributeValue": 2 * many, "C_FindObjects": many + 1})

	// A probe uses the current key, and none of the others.
	for range 10 {
		do(ring.Exercise)
	}
	atMost("ten probes", map[string]int{"C_EncryptInit": 10, "C_Encrypt": 10, "C_DecryptInit": 10, "C_Decrypt": 10, "all": 40})

	oldest := view.Versions[0].ID
	sealed, err := ring.Seal(t.Context(), oldest, []byte("DEK"))
	if err != nil {
		t.Fatal(err)
	}
	atMost("an Encrypt", map[string]int{"all": 2})
	if dek, err := ring.Open(t.Context(), oldest.String(), sealed); err != nil || string(dek) != "DEK" {
		t.Fatalf("%q, %v", dek, err)
	}
	atMost("a Decrypt under the oldest", map[string]int{"all": 2})

	// A version more costs its own inspection and one exercise, and then nothing until it is current.
	tok.generate(t, time.Now().Add(time.Hour))
	do(ring.Refresh)
	atMost("a re-read with a new version", map[string]int{"C_Encrypt": 1, "C_Decrypt": 1, "C_GetAttributeValue": 2*many + perKey})
	do(ring.Exercise)
	atMost("the probe after it", map[string]int{"C_Encrypt": 2, "C_Decrypt": 2, "all": 8})
	do(ring.Exercise)
	atMost("the one after that", map[string]int{"all": 4})
}

func benchmark(b *testing.B, versions int, f func(b *testing.B, tok *token)) {
	tok := newToken(b, versions)
	b.ResetTimer()
	f(b, tok)
}

func benchmarks(b *testing.B, f func(b *testing.B, tok *token)) {
	b.Run("1 version", func(b *testing.B) { benchmark(b, 1, f) })
	b.Run("400 versions", func(b *testing.B) { benchmark(b, many, f) })
}

// BenchmarkStart is from nothing to a ring that is read and exercised.
func BenchmarkStart(b *testing.B) {
	benchmarks(b, func(b *testing.B, tok *token) {
		for b.Loop() {
			_, stop := tok.start(b)
			b.StopTimer()
			stop()
			b.StartTimer()
		}
	})
}

// running benchmarks f on a ring that is in use.
func running(b *testing.B, f func(ctx context.Context, ring *envelope.Ring) error) {
	benchmarks(b, func(b *testing.B, tok *token) {
		ring, stop := tok.start(b)
		defer stop()
		for b.Loop() {
			if err := f(b.Context(), ring); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRefresh(b *testing.B) {
	running(b, func(ctx context.Context, ring *envelope.Ring) error { return ring.Refresh(ctx) })
}

func BenchmarkExercise(b *testing.B) {
	running(b, func(ctx context.Context, ring *envelope.Ring) error { return ring.Exercise(ctx) })
}

func BenchmarkView(b *testing.B) {
	running(b, func(_ context.Context, ring *envelope.Ring) error { return ring.Advance().Problem })
}

// BenchmarkDecrypt opens under the oldest version.
func BenchmarkDecrypt(b *testing.B) {
	benchmarks(b, func(b *testing.B, tok *token) {
		ring, stop := tok.start(b)
		defer stop()
		oldest := ring.Advance().Versions[0].ID
		sealed, err := ring.Seal(b.Context(), oldest, []byte("DEK"))
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := ring.Open(b.Context(), oldest.String(), sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestMain(m *testing.M) {
	os.Exit(testworker.Run(m))
}
