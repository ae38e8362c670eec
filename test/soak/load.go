package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"
)

const (
	clients     = 16
	callTimeout = 3 * time.Second      // kube-apiserver's own
	pacing      = 2 * time.Millisecond // so that the clients do not take all cores from what they ask
	oldDEKs     = 64                   // sealed before the first fault
	requestUID  = "5f2c1d34-0000-4000-8000-0123456789ab"
	mostWrong   = 10 // that are told in full
)

// sealedDEK is a DEK and what it was sealed as.
type sealedDEK struct {
	dek     []byte
	request *kmsapi.DecryptRequest
}

// tally is what came of the requests. Its methods may be called from any goroutine.
type tally struct {
	mu       sync.Mutex
	good     int
	failed   map[string]int // by code and words, which are few and fixed
	wrong    []string
	wrongs   int
	lastGood time.Time
	stall    time.Duration
	watched  bool
}

// load is clients that ask as kube-apiserver does: one connection for all, a deadline for each call.
type load struct {
	tally
	w      *rig
	old    []sealedDEK
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startLoad seals the old DEKs and starts the clients; end stops them.
func startLoad(ctx context.Context, w *rig) (*load, error) {
	l := &load{w: w, tally: tally{failed: map[string]int{}}}
	for range oldDEKs {
		sealed, err := l.seal(ctx)
		if err != nil {
			return nil, fmt.Errorf("sealing before any fault: %w", err)
		}
		l.old = append(l.old, sealed)
	}
	ctx, l.cancel = context.WithCancel(ctx)
	for client := range clients {
		l.wg.Go(func() {
			for n := client; ctx.Err() == nil; n++ {
				l.open(ctx, l.old[n%oldDEKs])
				if sealed, err := l.seal(ctx); err == nil {
					l.open(ctx, sealed)
				}
				pause(ctx, pacing)
			}
		})
	}
	l.wg.Go(func() { l.askStatus(ctx) })
	return l, nil
}

func (l *load) end() {
	l.cancel()
	l.wg.Wait()
}

func newDEK() []byte {
	dek := make([]byte, 32)
	_, _ = rand.Read(dek) // never fails
	return dek
}

func (l *load) seal(ctx context.Context) (sealedDEK, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	dek := newDEK()
	answer, err := l.w.api.Encrypt(call, &kmsapi.EncryptRequest{Plaintext: dek, Uid: requestUID})
	switch {
	case err != nil:
		l.failure(ctx, "Encrypt", err)
		return sealedDEK{}, err
	case answer.KeyId != l.w.keyID:
		l.violation(fmt.Sprintf("Encrypt: key_id became %s, was %s", answer.KeyId, l.w.keyID))
	default:
		l.success()
	}
	return sealedDEK{dek, &kmsapi.DecryptRequest{Ciphertext: answer.Ciphertext, KeyId: answer.KeyId, Uid: requestUID}}, nil
}

func (l *load) open(ctx context.Context, s sealedDEK) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := l.w.api.Decrypt(call, s.request)
	switch {
	case err != nil:
		l.failure(ctx, "Decrypt", err)
	case !bytes.Equal(answer.Plaintext, s.dek):
		l.violation(fmt.Sprintf("Decrypt: wrong plaintext, of %d bytes", len(answer.Plaintext)))
	default:
		l.success()
	}
}

// askStatus asks ten times a second: whatever it says of the HSM, the key_id stays, and it never waits for the HSM.
func (l *load) askStatus(ctx context.Context) {
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err := l.w.api.Status(call, &kmsapi.StatusRequest{})
		cancel()
		switch {
		case err == nil && answer.KeyId != l.w.keyID:
			l.violation(fmt.Sprintf("Status: key_id became %q, was %s", answer.KeyId, l.w.keyID))
		case status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil:
			l.violation("Status waited for the HSM: no answer in " + callTimeout.String())
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (t *tally) success() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.good++
	t.sinceLast()
	t.lastGood = time.Now()
}

// failure counts a request that failed, and takes those codes for broken promises that blame the request, which was
// genuine, or the program. ctx is the load's: what fails because the load ends is of no account.
func (t *tally) failure(ctx context.Context, op string, err error) {
	if ctx.Err() != nil {
		return
	}
	code := status.Code(err)
	t.mu.Lock()
	t.failed[fmt.Sprintf("%s (%s)", code, status.Convert(err).Message())]++
	t.mu.Unlock()
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.Internal, codes.Unknown:
		t.violation(fmt.Sprintf("%s of what is genuine: %v", op, err))
	}
}

func (t *tally) violation(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wrongs++
	if len(t.wrong) < mostWrong {
		t.wrong = append(t.wrong, time.Now().Format("15:04:05.000 ")+what)
	}
}

// watchStalls begins to look for the longest time without any success.
func (t *tally) watchStalls() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watched, t.lastGood = true, time.Now()
}

// longestStall gives it, the one that goes on now included.
func (t *tally) longestStall() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sinceLast()
	return t.stall
}

func (t *tally) sinceLast() {
	if t.watched {
		t.stall = max(t.stall, time.Since(t.lastGood))
	}
}
