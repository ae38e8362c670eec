package hardening

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// TestBrownOutsOfHold lets an HSM be slow, fail now and then, and come and go, under a plugin with a hold. No request fails, and
// what was written meanwhile opens with the HSM afterwards: on this node, and so on every other one.
func TestBrownOutsOfHold(t *testing.T) {
	t.Parallel()
	slow := func(d time.Duration) func(context.Context, *rig) {
		return func(ctx context.Context, w *rig) {
			w.faults.Delay("C_Encrypt", d)
			w.faults.Delay("C_Decrypt", d)
			<-ctx.Done()
		}
	}
	for name, c := range map[string]struct {
		does  func(context.Context, *rig) // until the context ends
		holds bool                        // it is an outage by the rule
	}{
		"1 s a call":   {slow(time.Second), false},
		"2.5 s a call": {slow(2500 * time.Millisecond), true},
		"errors":       {failNowAndThen, false},
		"up and down":  {comeAndGo, true},
		"all hangs": {func(ctx context.Context, w *rig) {
			release := w.faults.HangAll()
			<-ctx.Done()
			release()
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRig(t, options{faulty: true, extra: "probeInterval: 5s\noutageHold: 1h"})
			first := w.sealOne()
			w.untilHold(func(s *holdfile.State) bool { return s.Armed })
			ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
			defer cancel()
			ended := make(chan struct{})
			go func() { defer close(ended); c.does(ctx, w) }()
			sealed, slowest := []written{first}, time.Duration(0)
			for ctx.Err() == nil {
				began := time.Now()
				sealed = append(sealed, w.sealOne())
				w.openOne(sealed[len(sealed)-1])
				w.openOne(first)
				slowest = max(slowest, time.Since(began)/3)
				wait(t, 100*time.Millisecond)
			}
			<-ended
			w.faults.Clear()
			w.untilHold(func(s *holdfile.State) bool { return !s.Holding && s.Armed })
			onHold := 0
			for _, one := range sealed {
				if strings.HasSuffix(one.keyID, "/hold") {
					onHold++
				}
				w.openOne(one)
			}
			began := strings.Count(read(t, w.plugin.AuditLog()), `"hold.began"`)
			t.Logf("%d written, %d of them on hold; the hold began %d times; a request took %s on average at most", len(sealed), onHold, began, slowest.Round(time.Millisecond))
			if c.holds && began == 0 {
				t.Error("the hold never began")
			}
			if began > 1 { // it lasts for 20 s at least: five good probes, five seconds apart
				t.Errorf("it began %d times in 12 s", began)
			}
		})
	}
}

// failNowAndThen has every third call that uses a key fail.
func failNowAndThen(ctx context.Context, w *rig) {
	for ctx.Err() == nil {
		for _, function := range []string{"C_Encrypt", "C_DecryptInit"} {
			w.faults.Fail(function, pkcs11.CKR_FUNCTION_FAILED).After(2).Once()
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// comeAndGo takes the device away and gives it back.
func comeAndGo(ctx context.Context, w *rig) {
	for ctx.Err() == nil {
		w.faults.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
		select {
		case <-ctx.Done():
		case <-time.After(3 * time.Second):
		}
		w.faults.Clear()
		select {
		case <-ctx.Done():
		case <-time.After(3 * time.Second):
		}
	}
}

// written is a DEK and its envelope.
type written struct {
	keyID       string
	sealed, dek []byte
}

// sealOne seals a new DEK.
func (w *rig) sealOne() written {
	w.t.Helper()
	dek := make([]byte, 32)
	_, _ = rand.Read(dek)
	answer, err := w.client().Encrypt(w.within(patience), &kmsapi.EncryptRequest{Plaintext: bytes.Clone(dek), Uid: requestUID})
	if err != nil {
		w.t.Fatalf("Encrypt: %v", err)
	}
	return written{answer.KeyId, answer.Ciphertext, dek}
}

func (w *rig) openOne(one written) {
	w.t.Helper()
	answer, err := w.client().Decrypt(w.within(patience), &kmsapi.DecryptRequest{Ciphertext: one.sealed, KeyId: one.keyID, Uid: requestUID})
	if err == nil && !bytes.Equal(answer.Plaintext, one.dek) {
		err = errors.New("another DEK")
	}
	if err != nil {
		w.t.Fatalf("Decrypt under %s: %v", one.keyID, err)
	}
}
