package bench

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/load"
)

// Nonces is how many a key has over its life: random-nonce GCM, NIST SP 800-38D, section 8.3.
const Nonces = 1 << 32

// SealBudget is the most seals of one run, everything included. Each spends a nonce of the key that a cluster lives on, which
// has Nonces of them: a run takes one in 4,096 at most.
const SealBudget = 1 << 20

// The bounds of a Plan.
const (
	LongestTime = 10 * time.Second
	MostRows    = 8
	MostClients = 256 // well below the callers that package hsm lets wait for a session
)

const (
	openedDEKs = 64 // sealed beforehand, for the opens to go round
	// reserve is kept back for what is not in a row: those DEKs, one seal of each client to warm up, self-tests and probes.
	reserve = openedDEKs + MostRows*MostClients + 1024
)

// Plan is what is measured: a seal row and an open row for each number of clients.
type Plan struct {
	Clients []int         // 1 to MostRows of them, each from 1 to MostClients
	Time    time.Duration // of a row, at most LongestTime
}

// Rows is how many rows Run gives.
func (p Plan) Rows() int { return 2 * len(p.Clients) }

// Ring is what Run needs of envelope.Ring.
type Ring interface {
	Seal(ctx context.Context, id envelope.KeyID, dek []byte) ([]byte, error)
	Open(ctx context.Context, keyID string, envelope []byte) ([]byte, error)
}

// Run measures the plan, with the ring's key id; count is the observer of its tokens. It ends early, with the rows that are
// complete, at the first error and when stop ends.
func (p Plan) Run(stop context.Context, ring Ring, id envelope.KeyID, count *Counter) ([]Row, error) {
	// A call that has begun goes on to its end, which the token's call time-out bounds.
	ctx := context.WithoutCancel(stop)
	seal := func(_, _ int) error { return sealed(ctx, ring, id, nil) }
	var envelopes [][]byte
	for range openedDEKs {
		if err := sealed(ctx, ring, id, &envelopes); err != nil {
			return nil, fmt.Errorf("sealing a DEK to open later: %w", err)
		}
	}
	open := func(_, n int) error {
		dek, err := ring.Open(ctx, id.String(), envelopes[n%len(envelopes)])
		clear(dek)
		return err
	}
	var rows []Row
	for _, clients := range p.Clients {
		for _, op := range []struct {
			name string
			do   func(client, call int) error
			most int
		}{{OpSeal, seal, (SealBudget - reserve) / len(p.Clients)}, {OpOpen, open, math.MaxInt}} {
			row, err := p.row(stop, op.name, load.Load{Clients: clients, Time: p.Time, Ops: op.most}, count, op.do)
			if err != nil {
				return rows, fmt.Errorf("measuring %s with %d clients: %w", op.name, clients, err)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// row measures one row. Sessions are opened by the first operations, which do not count.
func (p Plan) row(stop context.Context, op string, l load.Load, count *Counter, do func(client, call int) error) (Row, error) {
	warm := l
	warm.Ops = l.Clients
	if _, _, err := load.Drive(stop, warm, do); err != nil {
		return Row{}, err
	}
	before := count.Calls()
	took, elapsed, err := load.Drive(stop, l, do)
	if err != nil {
		return Row{}, err
	}
	return RowOf(op, l.Clients, took, elapsed, count.Calls()-before), nil
}

// sealed seals a DEK that nobody uses, and keeps the envelope if it is told where.
func sealed(ctx context.Context, ring Ring, id envelope.KeyID, keep *[][]byte) error {
	var dek [32]byte
	_, _ = rand.Read(dek[:])
	envelope, err := ring.Seal(ctx, id, dek[:])
	if err == nil && keep != nil {
		*keep = append(*keep, envelope)
	}
	return err
}
