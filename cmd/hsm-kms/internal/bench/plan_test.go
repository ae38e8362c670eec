package bench

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// fakeRing answers after a while, and looks at how it is used.
type fakeRing struct {
	takes, slowOpen    time.Duration
	count              *Counter
	busy, most         atomic.Int64
	seals              atomic.Int64
	failAt             int64 // the seal that fails; 0: none
	cancelled, foreign atomic.Bool
}

var errFailed = errors.New("failed")

func (f *fakeRing) use(ctx context.Context) {
	n := f.busy.Add(1)
	for most := f.most.Load(); n > most && !f.most.CompareAndSwap(most, n); most = f.most.Load() {
	}
	time.Sleep(f.takes) // of synctest
	if ctx.Err() != nil {
		f.cancelled.Store(true)
	}
	for range 2 {
		f.count.HSMCall("fake", "C_Encrypt", "CKR_OK", 0)
	}
	f.busy.Add(-1)
}

func (f *fakeRing) Seal(ctx context.Context, _ envelope.KeyID, dek []byte) ([]byte, error) {
	f.use(ctx)
	if n := f.seals.Add(1); f.failAt > 0 && n >= f.failAt {
		return nil, errFailed
	}
	if len(dek) != 32 {
		f.foreign.Store(true)
	}
	return append([]byte("sealed:"), dek...), nil
}

func (f *fakeRing) Open(ctx context.Context, _ string, envelope []byte) ([]byte, error) {
	f.use(ctx)
	time.Sleep(f.slowOpen) // of synctest
	if !strings.HasPrefix(string(envelope), "sealed:") {
		f.foreign.Store(true)
	}
	return envelope[7:], nil
}

// Latency, rate and calls are what the ring did, for each number of clients.
func TestRowsTellWhatTheRingDid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var count Counter
		ring := &fakeRing{takes: 5 * time.Millisecond, count: &count}
		rows, err := Plan{Clients: []int{1, 8}, Time: time.Second}.Run(t.Context(), ring, envelope.KeyID{}, &count)
		want := []Row{
			{OpSeal, 1, 200, 5, 5, 2}, {OpOpen, 1, 200, 5, 5, 2}, {OpSeal, 8, 1600, 5, 5, 2}, {OpOpen, 8, 1600, 5, 5, 2},
		}
		if err != nil || len(rows) != len(want) {
			t.Fatalf("%d rows: %v", len(rows), err)
		}
		for i := range want {
			if rows[i] != want[i] {
				t.Errorf("row %d is %+v, want %+v", i, rows[i], want[i])
			}
		}
		if ring.most.Load() != 8 || ring.foreign.Load() {
			t.Errorf("%d at once; something foreign: %v", ring.most.Load(), ring.foreign.Load())
		}
	})
}

// However fast the token is, no more seals than SealBudget are made, with those of five connections (a self-test makes two,
// the first probe one).
func TestSealBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var count Counter
		ring := &fakeRing{count: &count, slowOpen: time.Second}
		if _, err := (Plan{Clients: []int{1, MostClients}, Time: LongestTime}).Run(t.Context(), ring, envelope.KeyID{}, &count); err != nil {
			t.Fatal(err)
		}
		if got := ring.seals.Load() + 5*3; got > SealBudget || got < SealBudget/2 {
			t.Errorf("%d seals, and at most %d were promised", got, SealBudget)
		}
	})
}

// The end comes within one operation, which is not cut short: that would leave its session behind.
func TestStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var count Counter
		ring := &fakeRing{takes: 5 * time.Millisecond, count: &count}
		stop, cancel := context.WithCancel(t.Context())
		start := time.Now()
		time.AfterFunc(2500*time.Millisecond, cancel)
		rows, err := Plan{Clients: []int{1, 8}, Time: time.Second}.Run(stop, ring, envelope.KeyID{}, &count)
		if !errors.Is(err, context.Canceled) || len(rows) != 2 {
			t.Errorf("%d rows, err = %v", len(rows), err)
		}
		if took := time.Since(start); took > 2510*time.Millisecond || ring.cancelled.Load() || ring.busy.Load() != 0 {
			t.Errorf("it took %s; cut short: %v; still under way: %d", took, ring.cancelled.Load(), ring.busy.Load())
		}
	})
}

func TestFirstErrorEndsIt(t *testing.T) {
	t.Parallel()
	var count Counter
	ring := &fakeRing{count: &count, failAt: 200}
	rows, err := Plan{Clients: []int{4}, Time: LongestTime}.Run(t.Context(), ring, envelope.KeyID{}, &count)
	if !errors.Is(err, errFailed) || len(rows) != 0 || !strings.Contains(err.Error(), "measuring seal with 4 clients: ") {
		t.Errorf("%d rows, err = %v", len(rows), err)
	}
	if n := ring.seals.Load(); n > 203 {
		t.Errorf("%d seals, and the 200th failed", n)
	}
}
