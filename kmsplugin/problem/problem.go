// Package problem is the one place that says what an error means outside the process: the gRPC code, the fixed words
// that a peer may read, the hint for the person who has to repair it, and whether writes must stop at once. Words never hold
// a path, a slot, a label or a cause: peers get no more than the class of a failure,
// and the same words for the same class everywhere. The cause goes to our own log.
//
// It depends on envelope for the errors, and on hint. It is a table without state, for any number of goroutines.
package problem

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Failures of this side of the envelope package. They are wrapped with their cause, as envelope's are.
var (
	// ErrStale: no check of the HSM has finished lately, so nothing is known of it.
	ErrStale = errors.New("the last check of the HSM is too old")
	// ErrUnchecked: no check of the HSM has finished yet.
	ErrUnchecked = errors.New("the HSM has not been checked yet")
	// ErrTooMany: more requests are in flight than are served at once.
	ErrTooMany = errors.New("too many requests in flight")
	// ErrRecord: the audit record that has to be there before the answer could not be written.
	ErrRecord = errors.New("the audit record could not be written")
	// ErrNotHeld: the HSM is away, and the outage hold has not what was asked for.
	ErrNotHeld = errors.New("the outage hold does not have it")
	// ErrPanic: the request ran into a bug of ours, and the process lives.
	ErrPanic = errors.New("panic while serving a request")
)

// Class is what a failure means to others.
type Class struct {
	Code  codes.Code
	Words string // for peers and healthz; fixed
	Hint  string // for people; "" when there is nothing to do
	// Stops: Status is an error at once, with no key_id, so that writes stop before data is written that nobody can
	// read. The others may go on for a while with the key_id that was proven last.
	Stops bool

	causes []error
}

// Error is the gRPC error that a peer gets.
func (c Class) Error() error { return status.Error(c.Code, c.Words) }

// Of tells the class of an error; every error has one, and nil is OK. When an error joins several failures (one for
// each token), the gravest that a person must act on comes first, then what says that a token could not be asked: an
// HSM that is away may hold the key that another lacks.
func Of(err error) Class {
	if err == nil {
		return Class{Code: codes.OK, Words: "ok"}
	}
	for _, group := range [][]Class{wholePlugin(), oneRequest()} {
		for _, class := range group {
			for _, cause := range class.causes {
				if errors.Is(err, cause) {
					return class.withHintOf(err)
				}
			}
		}
	}
	return Class{
		Code: codes.Internal, Words: "internal error; the plugin's log has the cause",
		Hint: "report it with the log line",
	}.withHintOf(err)
}

// IsUnknownKey reports whether the class of err is that of an unknown key_id.
func IsUnknownKey(err error) bool { return err != nil && Of(err).Code == codes.NotFound }

// withHintOf prefers the advice that the error itself carries: it knows the file or the token.
func (c Class) withHintOf(err error) Class {
	if advice := hint.Of(err); advice != "" {
		c.Hint = advice
	}
	return c
}

// wholePlugin are the failures that hold for every request until somebody acts.
func wholePlugin() []Class {
	return []Class{
		{Code: codes.Internal, Words: "internal error; the plugin's log has the cause",
			Hint: "report it with the log line", causes: []error{ErrPanic}},
		{Code: codes.Unavailable, Words: "the audit record could not be written",
			Hint: "free space on the audit log's file system, or find out why it cannot be written to", causes: []error{ErrRecord}},
		{Code: codes.FailedPrecondition, Words: "the HSM failed the self-test; run hsm-kms doctor on this node",
			Hint: "run hsm-kms doctor: the token does not open what it sealed, or does not do what the profile needs", Stops: true,
			causes: []error{envelope.ErrSelfTest}},
		{Code: codes.FailedPrecondition, Words: "the HSM repeated a nonce and seals no more; rotate the key",
			Hint:   "make a new key with hsm-kms keys rotate, and find out from the HSM's vendor why it repeats nonces; what was sealed stays readable",
			causes: []error{envelope.ErrNonceRepeated}},
		{Code: codes.FailedPrecondition, Words: "the memory of the HSM's nonces cannot be used; see stateDir on this node",
			Hint:   "run hsm-kms doctor on this node: the file nonces in stateDir must be readable and writable, and undamaged",
			causes: []error{envelope.ErrNonceMemory}},
		{Code: codes.FailedPrecondition, Words: "the current key is missing from the HSM; restore it",
			Hint:  "restore the key to the token from its backup; if the ring was begun again on purpose, stop the plugin and remove proven.json from stateDir",
			Stops: true, causes: []error{envelope.ErrKeyMissing}},
		{Code: codes.FailedPrecondition, Words: "the key ring is ambiguous; run hsm-kms keys list on this node",
			Hint:  envelope.ConflictHint,
			Stops: true, causes: []error{envelope.ErrAmbiguous}},
		{Code: codes.FailedPrecondition, Words: "the key ring is empty; run hsm-kms keys create",
			Hint: "run hsm-kms keys create once for the cluster, or copy the ring's keys to this token", Stops: true,
			causes: []error{envelope.ErrRingEmpty}},
		{Code: codes.FailedPrecondition, Words: "the HSM says that its PIN is locked; run hsm-kms doctor on this node",
			Hint:   envelope.PINLockedHint,
			causes: []error{envelope.ErrPINLocked}},
		{Code: codes.FailedPrecondition, Words: "the HSM says that the PIN has expired; set a new one",
			Hint:   envelope.PINExpiredHint,
			causes: []error{envelope.ErrPINExpired}},
		{Code: codes.FailedPrecondition, Words: "the HSM refused the PIN; correct the PIN file on this node",
			Hint: envelope.PINRefusedHint, causes: []error{envelope.ErrPINRefused}},
	}
}

// oneRequest are the failures of a request, or of the way to the HSM.
func oneRequest() []Class {
	return []Class{
		{Code: codes.ResourceExhausted, Words: "too many requests at once; try again",
			Hint: "raise maxSessions if the token allows more, or find out who sends so many requests", causes: []error{ErrTooMany, envelope.ErrBusy}},
		{Code: codes.DeadlineExceeded, Words: "the HSM did not answer in time",
			Hint: "find out why the HSM is slow; callTimeout must stay below kube-apiserver's time-out", causes: []error{context.DeadlineExceeded}},
		{Code: codes.Canceled, Words: "the request was cancelled", causes: []error{context.Canceled}},
		{Code: codes.Unavailable, Words: "the HSM is away, and the outage hold does not have what is asked for",
			Hint: "bring the HSM back: this node cannot read what others wrote meanwhile", causes: []error{ErrNotHeld}},
		{Code: codes.Unavailable, Words: "the HSM cannot use the key just now; run hsm-kms doctor on this node",
			Hint:   "run hsm-kms doctor: the token serves other keys; see the vendor's log for this one, and keep the key",
			causes: []error{envelope.ErrKeySuspended}},
		{Code: codes.Unavailable, Words: "the HSM is unavailable",
			Hint: "run hsm-kms doctor: the HSM, or the network to it, is down", causes: []error{envelope.ErrUnavailable}},
		{Code: codes.Unavailable, Words: "the last check of the HSM is too old",
			Hint: "a call into the HSM hangs; the plugin goes on by itself when it returns", causes: []error{ErrStale}},
		{Code: codes.Unavailable, Words: "the HSM has not been checked yet",
			Hint: "wait for the first check: if this stays, a call into the HSM hangs", causes: []error{ErrUnchecked}},
		{Code: codes.NotFound, Words: "unknown key_id",
			Hint:   "if refuseKeys names it, take it off that list: something still needs it; otherwise hsm-kms doctor reports what is wrong with that key",
			causes: []error{envelope.ErrKeyRefused}},
		{Code: codes.NotFound, Words: "unknown key_id",
			Hint: "copy the key of that key_id to this node's token: another node, or an earlier ring, sealed with it", causes: []error{envelope.ErrUnknownKey}},
		{Code: codes.InvalidArgument, Words: "the request is malformed, or its ciphertext is not authentic under its key_id",
			Hint:   "the data in etcd was changed, or comes from another provider or cluster",
			causes: []error{envelope.ErrMalformed, envelope.ErrUnauthentic}},
		{Code: codes.FailedPrecondition, Words: "no key has been proven on the HSM yet; the plugin's log has the cause",
			Hint: "run hsm-kms doctor: no key of the ring could be sealed and opened with", causes: []error{envelope.ErrNotProven}},
	}
}
