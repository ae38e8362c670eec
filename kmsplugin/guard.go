package kmsplugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/kmsplugin/limits"
	"github.com/hsm-kms/hsm-kms/kmsplugin/peers"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// defaultDeadline bounds a request whose client gives no deadline: kube-apiserver's own default.
const defaultDeadline = 3 * time.Second

// guard stands before every handler: it bounds what is in flight and how long it takes, has each Encrypt and Decrypt
// recorded before it is answered, and is the one place where causes become codes.
type guard struct {
	service  *service
	recorder Recorder
	metrics  Metrics
	logger   *slog.Logger
	slots    *limits.Slots // one for each Encrypt and Decrypt at work
	failures *failures
	panicked error // the answer to a request that ran into a bug
}

func newGuard(s *service, o *Options) *guard {
	return &guard{service: s, recorder: o.Recorder, metrics: o.Metrics, logger: o.Logger,
		slots: limits.NewSlots(o.MaxInFlight), failures: newFailures(o.Logger), panicked: problem.Of(problem.ErrPanic).Error()}
}

// recovered ends a panic: it logs it with its stack, and sets *err to answer. Defer it. The value is logged only if it is
// the runtime's own (an index out of range), and else its type: what a panic carries may be data.
func (g *guard) recovered(err *error, answer error) {
	p := recover()
	if p == nil {
		return
	}
	value := fmt.Sprintf("%T", p)
	if err, ok := p.(runtime.Error); ok {
		value = err.Error()
	}
	g.logger.Error("panic while serving a request; the process goes on", "panic", value, "stack", string(debug.Stack()),
		"hint", problem.Of(problem.ErrPanic).Hint)
	*err = answer
}

// call runs the handler. One that panics is recorded like any other failure.
func (g *guard) call(ctx context.Context, req any, handler grpc.UnaryHandler) (answer any, err error) {
	defer g.recovered(&err, problem.ErrPanic)
	return handler(ctx, req)
}

// serve answers every request that can be read. A recorder that panics does not take the process along.
func (g *guard) serve(ctx context.Context, req any, handler grpc.UnaryHandler) (answer any, err error) {
	defer g.recovered(&err, g.panicked)
	start := time.Now()
	op := Operation{Time: start}
	switch req := req.(type) {
	case *kmsapi.EncryptRequest:
		op.Operation, op.RequestUID = OperationEncrypt, req.Uid
	case *kmsapi.DecryptRequest:
		op.Operation, op.RequestUID, op.KeyID = OperationDecrypt, req.Uid, req.KeyId
	default: // Status: of no limit, so that nothing starves it, and of no record
		answer, err = g.call(ctx, req, handler)
		class := problem.Of(err)
		g.metrics.Answered(OperationStatus, class.Code, time.Since(start))
		if err != nil {
			return nil, class.Error()
		}
		return answer, nil
	}
	within := ctx
	var onHold *bool // a variable of its own: op would be on the heap for every request
	if g.service.hold != nil {
		onHold = new(bool)
		within = context.WithValue(ctx, onHoldKey{}, onHold)
	}
	answer, err = g.admitted(within, req, handler)
	if onHold != nil {
		op.OnHold = *onHold
	}
	if err != nil {
		answer = nil // it holds a nil pointer of the answer's type
	}
	op.Peer, _ = peers.FromContext(ctx)
	return g.settle(ctx, &op, answer, err)
}

// admitted runs the handler if there is room, and within a deadline.
func (g *guard) admitted(ctx context.Context, req any, handler grpc.UnaryHandler) (any, error) {
	connection := peers.Connection(ctx)
	if !g.slots.Take(connection) {
		if req, ok := req.(*kmsapi.EncryptRequest); ok {
			clear(req.Plaintext) // the handler, which does it else, does not run
		}
		return nil, problem.ErrTooMany
	}
	defer g.slots.Give(connection)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultDeadline)
		defer cancel()
	}
	return g.call(ctx, req, handler)
}

// settle records the outcome and makes the answer. A DEK whose record had to be kept and was not stays here.
func (g *guard) settle(ctx context.Context, op *Operation, answer any, err error) (any, error) {
	switch answer := answer.(type) {
	case *kmsapi.EncryptResponse:
		op.KeyID = answer.KeyId
	case nil:
		if named := g.service.named.Load(); named != nil && op.Operation == OperationEncrypt {
			op.KeyID = named.text
		}
	}
	class := problem.Of(err)
	op.Code = class.Code
	op.Duration = time.Since(op.Time)
	if recordErr := g.recorder.Record(ctx, *op); recordErr != nil {
		if answer, ok := answer.(*kmsapi.DecryptResponse); ok {
			clear(answer.Plaintext)
		}
		err = fmt.Errorf("%w: %w", problem.ErrRecord, errors.Join(recordErr, err))
		class = problem.Of(err)
	}
	g.metrics.Answered(op.Operation, class.Code, op.Duration)
	if err == nil {
		return answer, nil
	}
	g.failures.note(ctx, op, class, err)
	return nil, answerTo(class, op.KeyID, g.service.viewFor)
}
