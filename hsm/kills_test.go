package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// TestRandomKills takes tokens away at random, two of three at most at a time, under the load of 16 clients: nothing is
// lost, no answer is wrong, and nearly every caller gets one. It runs for five seconds, or for HSM_KMS_KILLS (1m).
func TestRandomKills(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	length := 5 * time.Second
	if text := os.Getenv("HSM_KMS_KILLS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	f := newFleet(t, 3, impatient)
	f.start()
	id := f.current()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var clients sync.WaitGroup
	seen := &witness{}
	for range 16 {
		clients.Go(func() {
			for ctx.Err() == nil {
				seen.look(f.ring, id)
			}
		})
	}
	kills := f.killAtRandom(ctx)
	clients.Wait()
	for _, module := range f.modules {
		module.Clear()
	}
	t.Logf("%d kills, %d round trips, %d errors (%.2f %%), the longest took %s",
		kills, seen.total, seen.failed, 100*float64(seen.failed)/float64(seen.total), seen.longest.Round(time.Millisecond))
	if seen.wrong != nil {
		t.Error(seen.wrong)
	}
	if seen.failed*50 > seen.total {
		t.Errorf("%d of %d round trips failed although a token was there; the last: %v", seen.failed, seen.total, seen.last)
	}
	for i := range f.tokens {
		f.untilUsable(i, true)
	}
	f.healthy(id)
	for i := range f.tokens { // nothing is lost: each token opens all that was sealed
		for _, wrapped := range seen.kept {
			if _, err := envelope.OpenDEK(t.Context(), f.member(i), f.common.Profile, id, wrapped); err != nil {
				t.Fatalf("token %d: %v", i, err)
			}
		}
	}
}

// killAtRandom breaks a token for a moment, again and again until ctx ends, and says how often.
func (f *fleet) killAtRandom(ctx context.Context) (kills int) {
	for ctx.Err() == nil {
		var broken sync.WaitGroup
		for _, i := range rand.Perm(len(f.modules))[:1+rand.IntN(len(f.modules)-1)] {
			kills++
			module, undo := f.modules[i], f.modules[i].Clear
			switch rand.IntN(4) {
			case 0:
				module.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
			case 1:
				module.FailAll(pkcs11.CKR_GENERAL_ERROR).UntilCleared()
			case 2:
				module.FailAll(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED).UntilCleared()
			case 3:
				undo = module.HangAll()
			}
			broken.Go(func() {
				select {
				case <-time.After(100*time.Millisecond + rand.N(time.Second)):
				case <-ctx.Done():
				}
				undo()
			})
		}
		broken.Wait()
		f.untilOneServes(ctx)
	}
	return kills
}

// untilOneServes lets a token come back before the next is taken, so that one is always there.
func (f *fleet) untilOneServes(ctx context.Context) {
	for ctx.Err() == nil {
		up := 0
		for i := range f.tokens {
			if f.member(i).Generation() != 0 {
				up++
			}
		}
		if up == len(f.tokens) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// witness is what the clients saw.
type witness struct {
	mu            sync.Mutex
	total, failed int
	longest       time.Duration
	last, wrong   error
	kept          [][]byte
}

// look seals and opens once, with kube-apiserver's patience.
func (w *witness) look(ring *envelope.Ring, id envelope.KeyID) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	dek := bytes.Repeat([]byte{3}, 32)
	start := time.Now()
	wrapped, err := ring.Seal(ctx, id, dek)
	var opened []byte
	if err == nil {
		opened, err = ring.Open(ctx, id.String(), wrapped)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.total++
	w.longest = max(w.longest, time.Since(start))
	switch {
	case err == nil && !bytes.Equal(opened, dek):
		w.wrong = fmt.Errorf("wrong plaintext %x", opened)
	case errors.Is(err, envelope.ErrMalformed), errors.Is(err, envelope.ErrUnknownKey):
		w.wrong = err
	case err != nil:
		w.failed, w.last = w.failed+1, err
	}
	if wrapped != nil && len(w.kept) < 200 {
		w.kept = append(w.kept, wrapped)
	}
}
