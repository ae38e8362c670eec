package kmsplugin

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/kmsplugin/peers"
)

// The names of the operations, in records and metrics.
const (
	OperationStatus  = "Status"
	OperationEncrypt = "Encrypt"
	OperationDecrypt = "Decrypt"
	OperationOther   = "Other" // what is no part of KMS v2; in metrics only
)

// Operation is one Encrypt or Decrypt, as an auditor sees it: everything but the data. RequestUID and the KeyID of a
// Decrypt are the peer's own words, of any length up to the message's limit; both are "" when the request could not be read.
type Operation struct {
	Time       time.Time // when the request came in
	Operation  string
	RequestUID string
	// KeyID is the key_id that a Decrypt named, or that an Encrypt sealed or would have sealed under; "": none.
	KeyID    string
	Code     codes.Code
	Duration time.Duration
	Peer     peers.Peer
	OnHold   bool // the outage hold answered, or was asked and could not
}

// Recorder keeps the audit trail. Record is called for every Encrypt and Decrypt, refused ones too, before the answer
// goes out; it is on the request's path, and is called from many goroutines at once. An error means that the record had
// to be kept and was not: the answer is then withheld. ctx is the request's and may have ended: it bounds how long a record
// waits for others, and is no reason to make none. A recorder that may lose records returns nil.
type Recorder interface {
	Record(ctx context.Context, op Operation) error
}

// Metrics counts. Its methods are called from many goroutines at once, and must not block.
type Metrics interface {
	// Answered: a request of the named operation (Status too) was answered with code.
	Answered(operation string, code codes.Code, took time.Duration)
	// Probed: the background probe ended, well if err is nil.
	Probed(err error, took time.Duration)
	// PeerRefused: a peer connected that is not allowed to.
	PeerRefused()
	// ConnectionDropped: there were too many connections, and one had to go.
	ConnectionDropped()
}

// nobody is told of anything: the Recorder and Metrics of an Options without.
type nobody struct{}

func (nobody) Record(context.Context, Operation) error    { return nil }
func (nobody) Answered(string, codes.Code, time.Duration) {}
func (nobody) Probed(error, time.Duration)                {}
func (nobody) PeerRefused()                               {}
func (nobody) ConnectionDropped()                         {}
