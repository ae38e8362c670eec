package kmsplugin

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// raw sends bytes as they are, as a codec of gRPC.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal([]byte, any) error   { return nil }
func (raw) Name() string                  { return "proto" }
func noMessage(conn *grpc.ClientConn) error {
	return streamed(conn, "/v2.KeyManagementService/Encrypt")
}

// streamed opens a request and ends it without a message.
func streamed(conn *grpc.ClientConn, name string) error {
	stream, err := conn.NewStream(context.Background(), &grpc.StreamDesc{}, name)
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		err = stream.RecvMsg(&kmsapi.StatusResponse{})
	}
	return err
}

func sendRaw(name string, message []byte) func(*grpc.ClientConn) error {
	return func(conn *grpc.ClientConn) error {
		return conn.Invoke(context.Background(), "/v2.KeyManagementService/"+name, &message, &message, grpc.ForceCodec(raw{}))
	}
}

// A request that gRPC refuses before anything of ours reads it is recorded, counted and logged like any other refusal.
func TestUnreadableRequestsAreRecorded(t *testing.T) {
	t.Parallel()
	broken := []byte{0x0a, 0xff}
	for name, tt := range map[string]struct {
		send      func(*grpc.ClientConn) error
		operation string
		code      codes.Code
	}{
		"Encrypt above the limit":     {sendRaw(OperationEncrypt, make([]byte, maxMessage+1)), OperationEncrypt, codes.ResourceExhausted},
		"Decrypt above the limit":     {sendRaw(OperationDecrypt, make([]byte, maxMessage+1)), OperationDecrypt, codes.ResourceExhausted},
		"Encrypt that is no protobuf": {sendRaw(OperationEncrypt, broken), OperationEncrypt, codes.Internal},
		"Decrypt that is no protobuf": {sendRaw(OperationDecrypt, broken), OperationDecrypt, codes.Internal},
		"Encrypt without a message":   {noMessage, OperationEncrypt, codes.Internal},
		"Status that is no protobuf":  {sendRaw(OperationStatus, broken), OperationStatus, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ring, _ := newRing(t)
			rec, logs := &records{}, &logBuffer{}
			p := run(t, Options{Ring: ring, Recorder: rec, Metrics: rec, Logger: logs.logger()})
			if err := tt.send(connect(t, p.path)); status.Code(err) != tt.code {
				t.Fatalf("answer %v, want %s", err, tt.code)
			}
			eventually(t, "it is counted", func() bool { return rec.answers(tt.operation, tt.code) == 1 })
			eventually(t, "it is logged", func() bool { return strings.Contains(logs.String(), "request failed") })
			op, want := rec.last(), 1
			if tt.operation == OperationStatus {
				want = 0
			}
			if rec.count() != want {
				t.Fatalf("%d records, want %d", rec.count(), want)
			}
			if want == 1 && (op.Operation != tt.operation || op.Code != tt.code || op.Peer.PID != os.Getpid() || op.KeyID != "" || op.Time.IsZero()) {
				t.Errorf("recorded %+v", op)
			}
		})
	}
}

// A record of it that cannot be kept is said, and a recorder that panics takes nothing along.
func TestUnreadableWhileTheRecorderFails(t *testing.T) {
	t.Parallel()
	for text, recorder := range map[string]Recorder{
		problem.ErrRecord.Error(): &records{err: errors.New("full")},
		"panic while serving":     panicking{},
	} {
		ring, _ := newRing(t)
		logs := &logBuffer{}
		p := run(t, Options{Ring: ring, Recorder: recorder, Logger: logs.logger()})
		conn := connect(t, p.path)
		if err := sendRaw(OperationDecrypt, []byte{0x0a, 0xff})(conn); status.Code(err) != codes.Internal {
			t.Errorf("error = %v", err)
		}
		eventually(t, "the log says "+text, func() bool { return strings.Contains(logs.String(), text) })
		if _, err := kmsapi.NewKeyManagementServiceClient(conn).Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// A request that its peer takes back before it has sent it asked for nothing.
func TestTakenBackBeforeItIsRead(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	rec := &records{}
	p := run(t, Options{Ring: ring, Recorder: rec, Metrics: rec})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := connect(t, p.path).NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/v2.KeyManagementService/Decrypt")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := stream.RecvMsg(&kmsapi.DecryptResponse{}); err == nil || errors.Is(err, io.EOF) {
		t.Fatalf("error = %v", err)
	}
	eventually(t, "it is counted", func() bool { return rec.answers(OperationDecrypt, codes.Canceled) == 1 })
	if rec.count() != 0 {
		t.Errorf("recorded: %+v", rec.last())
	}
}

// A method that is no part of KMS v2 is counted, and logged with what to do: a kube-apiserver whose provider says apiVersion: v1 ends here.
func TestUnknownMethods(t *testing.T) {
	t.Parallel()
	ring, _ := newRing(t)
	rec, logs := &records{}, &logBuffer{}
	p := run(t, Options{Ring: ring, Recorder: rec, Metrics: rec, Logger: logs.logger()})
	if err := streamed(connect(t, p.path), "/v1beta1.KeyManagementService/Encrypt"); status.Code(err) != codes.Unimplemented {
		t.Errorf("error = %v", err)
	}
	if n := rec.answers(OperationOther, codes.Unimplemented); n != 1 || rec.count() != 0 {
		t.Errorf("counted %d times, %d records", n, rec.count())
	}
	if !strings.Contains(logs.String(), "v1beta1.KeyManagementService/Encrypt") || !strings.Contains(logs.String(), "apiVersion: v2") {
		t.Errorf("log:\n%s", logs)
	}
}

// The service is the one of the API: the same names and methods, and no other.
func TestMethodsAreThoseOfTheAPI(t *testing.T) {
	t.Parallel()
	server := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(server, kmsapi.UnimplementedKeyManagementServiceServer{})
	ours := newGuard(&service{}, &Options{}).methods()
	theirs, ok := server.GetServiceInfo()[ours.ServiceName]
	if !ok || len(theirs.Methods) != len(ours.Methods) {
		t.Fatalf("service %q: %+v", ours.ServiceName, theirs)
	}
	for _, method := range theirs.Methods {
		found := false
		for _, m := range ours.Methods {
			found = found || m.MethodName == method.Name
		}
		if !found {
			t.Errorf("no method %s", method.Name)
		}
	}
}
