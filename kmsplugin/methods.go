package kmsplugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/kmsplugin/peers"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// methods is the service as gRPC is given it (api.proto of k8s.io/kms, apis/v2). It is ours and not the generated one
// because that one hands a request which cannot be read (above the limit, no protobuf) back to gRPC, past every
// interceptor: it would be refused with no record and no count. On the way of a request that can be read it costs nothing.
//
// A stats handler can do the same, and was tried (grpc-go 1.85): gRPC then makes 19 more allocations for each request, a tenth
// of the processor time of a round trip. It also sees what no handler does, a compressed request: gRPC refuses that by
// itself (Unimplemented), with no record.
func (g *guard) methods() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*kmsapi.KeyManagementServiceServer)(nil),
		Metadata:    "api.proto",
		Methods: []grpc.MethodDesc{
			method(g, OperationStatus, (*service).Status),
			method(g, OperationEncrypt, (*service).Encrypt),
			method(g, OperationDecrypt, (*service).Decrypt),
		},
	}
}

const serviceName = "v2.KeyManagementService"

// method is one method of the service, named like its operation.
func method[Request, Answer any](g *guard, name string, call func(*service, context.Context, *Request) (*Answer, error)) grpc.MethodDesc {
	handler := func(ctx context.Context, req any) (any, error) {
		answer, err := call(g.service, ctx, req.(*Request))
		if err != nil {
			return nil, err
		}
		return answer, nil
	}
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			req := new(Request)
			if err := decode(req); err != nil {
				return nil, g.unreadable(ctx, name, err)
			}
			return g.serve(ctx, req, handler)
		},
	}
}

// unreadable records and counts a request that gRPC could not read, and has refused by itself already: the record comes
// after the answer, which gives nothing away. One that its peer took back before it was all there was not asked, and is
// only counted. refusal is gRPC's answer.
func (g *guard) unreadable(ctx context.Context, operation string, refusal error) (err error) {
	defer g.recovered(&err, refusal)
	op := Operation{Time: time.Now(), Operation: operation, Code: status.Code(refusal)}
	if op.Code == codes.Canceled || op.Code == codes.DeadlineExceeded { // ctx is done in any case: gRPC has answered
		g.metrics.Answered(operation, op.Code, 0)
		return refusal
	}
	op.Peer, _ = peers.FromContext(ctx)
	cause := refusal
	if operation != OperationStatus {
		if err := g.recorder.Record(ctx, op); err != nil {
			cause = fmt.Errorf("%w: %w", problem.ErrRecord, errors.Join(err, refusal))
		}
	}
	g.metrics.Answered(operation, op.Code, time.Since(op.Time))
	class := problem.Class{Code: op.Code, Words: "unreadable", Hint: "kube-apiserver sends no such request: find out what the process with that pid is"}
	g.failures.note(ctx, &op, class, cause)
	return refusal
}

// unknown answers a request for anything else than KMS v2: a service or method that is not here.
func (g *guard) unknown(_ any, stream grpc.ServerStream) (err error) {
	defer g.recovered(&err, g.panicked)
	ctx := stream.Context()
	name, _ := grpc.Method(ctx)
	op := Operation{Time: time.Now(), Operation: OperationOther, Code: codes.Unimplemented}
	op.Peer, _ = peers.FromContext(ctx)
	class := problem.Class{Code: op.Code, Words: "this is a KMS v2 plugin, and serves nothing else",
		Hint: "if it is kube-apiserver: set apiVersion: v2 for the provider in its EncryptionConfiguration"}
	g.metrics.Answered(OperationOther, class.Code, 0)
	g.failures.note(ctx, &op, class, fmt.Errorf("it asks for %s", quoted(name)))
	return class.Error()
}
