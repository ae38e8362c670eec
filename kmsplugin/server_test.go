package kmsplugin

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/limits"
)

func TestPanicIsInternalAndTheProcessLives(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	rec, logs := &records{}, &logBuffer{}
	p := run(t, Options{Ring: ring, Recorder: rec, Logger: logs.logger()})
	ring.set(func(r *fakeRing) {
		r.open = func(context.Context, string, []byte) ([]byte, error) { panic("a secret") }
	})
	c := client(t, p.path)
	_, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("error = %v", err)
	}
	if rec.last().Code != codes.Internal {
		t.Errorf("record = %+v", rec.last())
	}
	if text := logs.String(); !strings.Contains(text, "fakeRing") || strings.Contains(text, "a secret") {
		t.Errorf("the log needs the stack, and not the value:\n%s", text)
	}
	if _, err := c.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

type panicking struct{ nobody }

func (panicking) Record(context.Context, Operation) error { panic("recorder") }

func TestPanicInTheRecorder(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	p := run(t, Options{Ring: ring, Recorder: panicking{}})
	_, err := client(t, p.path).Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("dek")})
	if status.Code(err) != codes.Internal {
		t.Errorf("error = %v", err)
	}
}

// blockOpen makes Open wait until the returned function is called or its context ends; entered gets one value for each.
func blockOpen(ring *fakeRing) (entered chan struct{}, release func()) {
	entered, free := make(chan struct{}, 1000), make(chan struct{})
	ring.set(func(r *fakeRing) {
		r.open = func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			entered <- struct{}{}
			select {
			case <-free:
				return []byte("dek"), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})
	return entered, sync.OnceFunc(func() { close(free) })
}

func TestTooManyInFlight(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	rec := &records{}
	p := run(t, Options{Ring: ring, Recorder: rec, MaxInFlight: 4})
	entered, release := blockOpen(ring)
	defer release()
	c := client(t, p.path)
	request := &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := c.Decrypt(t.Context(), request); err != nil {
				t.Errorf("within the limit: %v", err)
			}
		})
		<-entered
	}
	for range 20 {
		_, err := c.Decrypt(t.Context(), request)
		if status.Code(err) != codes.ResourceExhausted || rec.last().Code != codes.ResourceExhausted {
			t.Fatalf("above the limit: %v, recorded %v", err, rec.last().Code)
		}
	}
	// On the same connection, with all slots taken.
	if _, err := c.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Errorf("Status was starved: %v", err)
	}
	release()
	wg.Wait()
	if _, err := c.Decrypt(t.Context(), request); err != nil {
		t.Errorf("the slots were not given back: %v", err)
	}
}

// Whatever some connections ask for, another that asks for little is served: one that takes all it can get, and then
// several of them.
func TestSlotsAreShared(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring, MaxInFlight: 12})
	entered, release := blockOpen(ring)
	defer release()
	request := &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer release()
	// greedy asks until it is refused, and tells how many were not.
	greedy := func(c kmsapi.KeyManagementServiceClient) (served int) {
		for {
			refused := make(chan struct{})
			wg.Go(func() {
				_, err := c.Decrypt(ctx, request)
				if err != nil {
					close(refused)
				}
				if err != nil && status.Code(err) != codes.ResourceExhausted {
					t.Error(err)
				}
			})
			select {
			case <-entered:
				served++
			case <-refused:
				return served
			}
		}
	}
	var clients []kmsapi.KeyManagementServiceClient
	for i, want := range []int{12, 6, 4, 2} { // 12, 12/2, 12/3, and what is left of 24
		c := client(t, p.path)
		clients = append(clients, c)
		if served := greedy(c); served != want {
			t.Errorf("connection %d: %d of its requests are at work, want %d", i, served, want)
		}
	}
	if served := greedy(clients[0]); served != 0 {
		t.Errorf("the first takes %d more", served)
	}
	release()
	wg.Wait()
	if slots, connections := p.guard.slots.Taken(); slots != 0 || connections != 0 {
		t.Errorf("%d slots of %d connections were not given back", slots, connections)
	}
}

func TestDeadlineForThoseWithout(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring})
	var left time.Duration
	ring.set(func(r *fakeRing) {
		r.open = func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
			return nil, context.DeadlineExceeded
		}
	})
	_, err := client(t, p.path).Decrypt(context.Background(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
	if status.Code(err) != codes.DeadlineExceeded || left <= 0 || left > defaultDeadline {
		t.Errorf("error = %v with %v left", err, left)
	}
}

func TestMessageTooLarge(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring})
	_, err := client(t, p.path).Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: make([]byte, maxMessage+1), KeyId: id.String()})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error = %v", err)
	}
}

func TestNothingElseIsServed(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	p := run(t, Options{Ring: ring})
	conn := connect(t, p.path)
	for _, method := range []string{
		"/v2.KeyManagementService/Rotate", "/v1beta1.KeyManagementService/Version", "/grpc.health.v1.Health/Check",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	} {
		err := conn.Invoke(t.Context(), method, &kmsapi.StatusRequest{}, &kmsapi.StatusResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestPeerRefused(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	rec, logs := &records{}, &logBuffer{}
	p := run(t, Options{Ring: ring, Metrics: rec, Logger: logs.logger(), AllowedUIDs: []uint32{4242}})
	for range 3 {
		if _, err := StatusOf(t.Context(), p.path); status.Code(err) != codes.Unavailable {
			t.Errorf("error = %v", err)
		}
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.refused < 3 {
		t.Errorf("%d refusals were counted", rec.refused)
	}
	if n := strings.Count(logs.String(), `msg="peer refused"`); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, logs)
	}
}

// A flood of connections that say nothing, or not enough, leaves the API server's connection served, and lets a new one
// in.
func TestFloodOfConnections(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	rec := &records{}
	p := run(t, Options{Ring: ring, Metrics: rec, Conns: limits.Config{Unfinished: 8, Total: 32}})
	established := client(t, p.path)
	if _, err := established.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	var flood []net.Conn
	defer func() {
		for _, conn := range flood {
			_ = conn.Close()
		}
	}()
	for i := range 200 {
		conn, err := net.Dial("unix", p.path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[:i%25]) // an error: dropped already
		flood = append(flood, conn)
		if i%50 == 0 {
			if _, err := established.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
				t.Errorf("the established connection after %d: %v", i, err)
			}
		}
	}
	eventually(t, "all but eight are dropped", func() bool { rec.mu.Lock(); defer rec.mu.Unlock(); return rec.dropped >= 192 })
	if _, err := StatusOf(t.Context(), p.path); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	if _, err := established.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
		t.Errorf("the established connection: %v", err)
	}
}

// Status keeps its latency while the HSM hangs in every probe and request.
func TestStatusWhileTheHSMHangs(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	p := run(t, Options{Ring: ring, ProbeInterval: 20 * time.Millisecond, MaxInFlight: 32})
	hang := make(chan struct{})
	defer close(hang)
	ring.set(func(r *fakeRing) { r.exercise = func(context.Context) error { <-hang; return nil } })
	entered, release := blockOpen(ring)
	defer release()
	c := client(t, p.path)
	for range 32 {
		go func() {
			_, _ = c.Decrypt(context.Background(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
		}()
		<-entered
	}
	var took []time.Duration
	for range 300 {
		start := time.Now()
		if _, err := c.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	// The figure is 5 ms on a quiet machine; tests run beside each other.
	if p50 := took[len(took)/2]; p50 > 5*time.Millisecond {
		t.Errorf("p50 of Status = %v", p50)
	}
}

// An outage makes few log lines, however many requests fail in it.
func TestFailuresAreLoggedSparingly(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	logs := &logBuffer{}
	p := run(t, Options{Ring: ring, Logger: logs.logger()})
	ring.set(func(r *fakeRing) {
		r.open = func(context.Context, string, []byte) ([]byte, error) {
			return nil, fmt.Errorf("token a: %w", envelope.ErrUnavailable)
		}
	})
	c := client(t, p.path)
	for range 100 {
		_, _ = c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
	}
	if n := strings.Count(logs.String(), "request failed"); n != 1 {
		t.Errorf("%d lines:\n%s", n, logs)
	}
	if !strings.Contains(logs.String(), "token a") {
		t.Errorf("the cause is not in the log:\n%s", logs)
	}
}

func TestStatusOfHints(t *testing.T) {
	t.Parallel()
	_, err := StatusOf(t.Context(), t.TempDir()+"/absent")
	if status.Code(err) != codes.Unavailable || !strings.Contains(hint.Of(err), "check that hsm-kms serve runs") {
		t.Errorf("nobody there: %v, hint %q", err, hint.Of(err))
	}
	ring, _ := newRing(t)
	ring.exercise = func(context.Context) error { return envelope.ErrUnavailable }
	p := run(t, Options{Ring: ring})
	_, err = StatusOf(t.Context(), p.path)
	if status.Code(err) != codes.Unavailable || !strings.Contains(hint.Of(err), "log") || strings.Contains(hint.Of(err), "--socket") {
		t.Errorf("an HSM that is away: %v, hint %q", err, hint.Of(err))
	}
}
