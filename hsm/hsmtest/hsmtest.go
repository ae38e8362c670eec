// Package hsmtest is what any PKCS#11 module must do for hsm-kms: one suite, run here over every token that can be
// had, and by anyone over hardware of their own (CONTRIBUTING.md). It goes through package hsm alone, as the
// program does. It has the suite and what drives a token for it; faults that a test provokes itself are in the tests.
// It depends on envelope, hsm, p11test, worker and atomicfile.
package hsmtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
)

// Subject is the token under test.
type Subject struct {
	Common hsm.Config
	Token  hsm.TokenConfig
	// MakeKey makes a key of the ring by the vendor's tool, in a process of its own. nil: hsm.Generate in a process
	// of its own, for which the test binary's TestMain calls Main.
	MakeKey func(ctx context.Context, ring string, ckaID []byte) error
	// ForeignKeys: the token stands in for one whose keys must exist already, so none is made.
	ForeignKeys bool
	// WrongPIN: a wrong PIN may be tried on it, once. Never on hardware that somebody needs.
	WrongPIN bool
	// BlindToNewKeys: the module does not show a key that another process made after its initialisation.
	BlindToNewKeys bool
	// OneProcess: no other process can use the token while this one does.
	OneProcess bool
}

// Run holds the token against the suite. The subtests run one after the other, because a module is initialised once
// in a process, and leave no session open. Keys that it makes stay on the token.
func Run(t *testing.T, s Subject) {
	t.Helper()
	s = s.withDefaults(t)
	ensureKey(t, s)
	for _, part := range []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"ring", testRing},
		{"self-test", testSelfTest},
		{"hold", testHold},
		{"sizes", testSizes},
		{"tampering", testTampering},
		{"unknown key", testUnknownKey},
		{"concurrency", testConcurrency},
		{"deadlines", testDeadlines},
		{"live ring", testLiveRing},
		{"binding", testBinding},
		{"other profile", testOtherProfile},
		{"wrong PIN", testWrongPIN},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, s) })
	}
}

func (s Subject) withDefaults(t *testing.T) Subject {
	t.Helper()
	if s.Common.Ring == "" {
		s.Common.Ring = "hsmtest"
	}
	if s.Common.StateDir == "" {
		s.Common.StateDir = t.TempDir()
	}
	if s.Token.Name == "" {
		s.Token.Name = "subject"
	}
	if s.Token.MaxSessions == 0 {
		s.Token.MaxSessions = 4
	}
	if s.Token.CallTimeout == 0 {
		s.Token.CallTimeout = 2 * time.Second
	}
	return s
}

// ensureKey sees to it that the ring has a key that is served.
func ensureKey(t *testing.T, s Subject) {
	t.Helper()
	served, refused := countKeys(t, s)
	if served == 0 && !s.ForeignKeys {
		s.AddKey(t, time.Now().Add(-time.Minute))
		served, refused = countKeys(t, s)
	}
	if served == 0 {
		t.Fatalf("the ring %s has no usable key; refused: %q", s.Common.Ring, refused)
	}
}

// countKeys tells how many keys of the ring are served, and why others are not.
func countKeys(t *testing.T, s Subject) (served int, refused []string) {
	t.Helper()
	d := Start(t, s)
	defer d.Close()
	d.mustConnect()
	for _, key := range d.mustKeys() {
		if key.Refused == "" {
			served++
		} else {
			refused = append(refused, fmt.Sprintf("%s: %s (%+v)", key.CKAID, key.Refused, key.Attributes))
		}
	}
	return served, refused
}

// AddKey makes a key that is current from activation on, in another process, and returns its CKA_ID.
func (s Subject) AddKey(t *testing.T, activation time.Time) []byte {
	t.Helper()
	id, err := envelope.NewCKAID(activation)
	if err != nil {
		t.Fatal(err)
	}
	makeKey := s.MakeKey
	if makeKey == nil {
		makeKey = s.generateElsewhere
	}
	if err := makeKey(t.Context(), s.Common.Ring, id); err != nil {
		t.Fatalf("making a key: %v", err)
	}
	return id
}
