package kmsplugin

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	kmsapi "k8s.io/kms/apis/v2"
)

func TestMoving(t *testing.T) {
	t.Parallel()
	l := &live{Metrics: nobody{}}
	now := time.Now()
	for i, step := range []struct {
		after  time.Duration
		full   bool
		answer bool
		stuck  bool
	}{
		{full: true},
		{after: stuckAfter, full: true},
		{after: time.Second, full: true, stuck: true},
		{after: time.Second, full: true, stuck: true},
		{after: time.Second, full: true, answer: true}, // one came through
		{after: stuckAfter, full: true},
		{after: time.Second, full: true, stuck: true},
		{after: time.Second}, // a slot is free
		{after: stuckAfter + time.Second},
		{after: time.Second, full: true},
		{after: stuckAfter / 2, full: true},
		{after: stuckAfter, full: true, answer: true}, // busy, and not stuck
		{after: stuckAfter, full: true, answer: true},
	} {
		now = now.Add(step.after)
		if step.answer {
			l.Answered(OperationDecrypt, codes.OK, 0)
		}
		l.Answered(OperationStatus, codes.OK, 0) // says nothing of the slots
		if err := l.moving(step.full, now); (err != nil) != step.stuck {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

// A process whose requests are all stuck is not live, and says so once.
func TestLive(t *testing.T) {
	t.Parallel()
	ring, id := newRing(t)
	logs := &logBuffer{}
	p := run(t, Options{Ring: ring, Logger: logs.logger(), MaxInFlight: 2})
	if err := p.Live(); err != nil {
		t.Fatal(err)
	}
	entered, release := blockOpen(ring)
	defer release()
	c := client(t, p.path)
	for range 2 {
		go func() {
			_, _ = c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), KeyId: id.String()})
		}()
		<-entered
	}
	if err := p.Live(); err != nil {
		t.Errorf("at once: %v", err)
	}
	p.live.mu.Lock()
	p.live.free = time.Now().Add(-2 * stuckAfter)
	p.live.mu.Unlock()
	for range 3 {
		if p.Live() == nil {
			t.Error("it says that it lives")
		}
	}
	if n := strings.Count(logs.String(), "the process is stuck"); n != 1 || !strings.Contains(logs.String(), "hint=\"check") {
		t.Errorf("%d lines:\n%s", n, logs)
	}
	release()
	eventually(t, "it lives again", func() bool { return p.Live() == nil })
}
