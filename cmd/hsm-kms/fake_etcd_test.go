package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

// fakeEtcd is an etcd in memory that can be read and saved, and no more: what the commands make of a real one is in
// test/evidence/e2e and test/e2e.
type fakeEtcd struct {
	pb.UnimplementedKVServer
	pb.UnimplementedMaintenanceServer
	url string

	mu           sync.Mutex
	cluster      uint64
	history      []*mvccpb.KeyValue // in order of revision; a nil value: deleted
	written      int64              // revisions, those that compaction took away included
	term         uint64
	back         int64  // how many revisions it says less than it has
	log          int64  // how many entries its raft log has more than it has revisions
	afterReading func() // once, at the end of the next reading
	role         string // the client may read what begins with this alone; empty: all
}

// newFakeEtcd serves one until stop.
func newFakeEtcd() (f *fakeEtcd, stop func(), err error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	f = &fakeEtcd{url: "http://" + lis.Addr().String(), cluster: 0xcafe, log: 50}
	server := grpc.NewServer()
	pb.RegisterKVServer(server, f)
	pb.RegisterMaintenanceServer(server, f)
	go func() { _ = server.Serve(lis) }() // ends with Stop
	return f, server.Stop, nil
}

// put writes what stands below /registry: under keyID, or plain text without one.
func (f *fakeEtcd) put(path, keyID string) error { return f.putAt("/registry/"+path, keyID, "hsm-kms") }

func (f *fakeEtcd) putAt(key, keyID, provider string) error {
	value := []byte("k8s\x00plain")
	if keyID != "" {
		// Of the right form, and what no HSM can open.
		wrapped := envelope.Envelope{Profile: envelope.AESGCM, Unique: make([]byte, envelope.NonceSize), Sealed: make([]byte, 32+envelope.TagSize)}
		dek := &kubestore.DEK{Provider: provider, KeyID: keyID, Wrapped: wrapped.Marshal(), Plain: make([]byte, 32)}
		var err error
		if value, err = dek.Value(key, []byte("data")); err != nil {
			return err
		}
	}
	f.write(key, value)
	return nil
}

func (f *fakeEtcd) write(key string, value []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history = append(f.history, &mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: f.written + 2})
	f.written++
}

// seal writes a Secret as an API server does, with a DEK of its own, which is the key itself or a seed.
func (f *fakeEtcd) seal(socket, path string, isKey bool) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	dek := &kubestore.DEK{Provider: "hsm-kms", Plain: make([]byte, 32), IsKey: isKey}
	_, _ = rand.Read(dek.Plain)
	answer, err := kmsapi.NewKeyManagementServiceClient(conn).Encrypt(context.Background(), &kmsapi.EncryptRequest{Plaintext: dek.Plain, Uid: "script"})
	if err != nil {
		return err
	}
	dek.KeyID, dek.Wrapped = answer.KeyId, answer.Ciphertext
	secret, err := kubestore.Secret("shop", "db", []byte("secret"))
	if err != nil {
		return err
	}
	value, err := dek.Value("/registry/"+path, secret)
	if err != nil {
		return err
	}
	f.write("/registry/"+path, value)
	return nil
}

// compact forgets all but the newest revisions.
func (f *fakeEtcd) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history = f.newest()
}

// move puts a value under another key.
func (f *fakeEtcd) move(from, to string) {
	f.mu.Lock()
	var value []byte
	for _, kv := range f.newest() {
		if string(kv.Key) == "/registry/"+from {
			value = kv.Value
		}
	}
	f.mu.Unlock()
	f.write("/registry/"+to, value)
}

// newest is what stands there now, in order of keys.
func (f *fakeEtcd) newest() []*mvccpb.KeyValue {
	newest := map[string]*mvccpb.KeyValue{}
	for _, kv := range f.history {
		newest[string(kv.Key)] = kv
	}
	kvs := slices.Collect(maps.Values(newest))
	kvs = slices.DeleteFunc(kvs, func(kv *mvccpb.KeyValue) bool { return kv.Value == nil })
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs
}

// Range implements the part of etcd that reads. Whatever revision is asked for, it answers with the newest.
func (f *fakeEtcd) Range(_ context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if end := clientv3.GetPrefixRangeEnd(f.role); f.role != "" && (string(req.Key) < f.role || string(req.RangeEnd) == "\x00" || string(req.RangeEnd) > end) {
		return nil, rpctypes.ErrGRPCPermissionDenied
	}
	kvs := slices.DeleteFunc(f.newest(), func(kv *mvccpb.KeyValue) bool {
		if len(req.RangeEnd) == 0 {
			return !bytes.Equal(kv.Key, req.Key)
		}
		return bytes.Compare(kv.Key, req.Key) < 0 || string(req.RangeEnd) != "\x00" && bytes.Compare(kv.Key, req.RangeEnd) >= 0
	})
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: f.cluster, RaftTerm: f.term, Revision: f.written + 1 - f.back}, Count: int64(len(kvs))}
	if req.CountOnly {
		return resp, nil
	}
	if limit := int(req.Limit); limit > 0 && len(kvs) > limit {
		kvs, resp.More = kvs[:limit], true
	}
	for _, kv := range kvs {
		kv = proto.CloneOf(kv)
		kv.ModRevision = min(kv.ModRevision, resp.Header.Revision)
		resp.Kvs = append(resp.Kvs, kv)
	}
	return resp, nil
}

// Status implements what a member says of itself. A cluster id of 0 is that of a store which is no etcd, and says nothing.
func (f *fakeEtcd) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	f.mu.Lock()
	if then := f.afterReading; then != nil {
		f.afterReading = nil
		defer then() // the lock is free again
	}
	defer f.mu.Unlock()
	if f.cluster == 0 {
		return &pb.StatusResponse{Header: &pb.ResponseHeader{}}, nil
	}
	revision := f.written + 1 - f.back
	return &pb.StatusResponse{
		Header:   &pb.ResponseHeader{ClusterId: f.cluster, MemberId: 0xbeef, RaftTerm: f.term, Revision: revision},
		RaftTerm: f.term, RaftIndex: uint64(revision + f.log), RaftAppliedIndex: uint64(revision + f.log), //nolint:gosec // a test's numbers
	}, nil
}

// namespace writes the namespace by which a cluster is known.
func (f *fakeEtcd) namespace(uid string) {
	f.write("/registry/namespaces/kube-system", fmt.Appendf(nil, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"kube-system","uid":%q}}`, uid))
}

// renew writes the Lease of an API server whose clock is ahead of ours.
func (f *fakeEtcd) renew(ahead time.Duration) {
	f.write("/registry/leases/kube-system/apiserver-1", fmt.Appendf(nil, `{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","spec":{"renewTime":%q}}`,
		time.Now().Add(ahead).UTC().Format("2006-01-02T15:04:05.000000Z")))
}

// goBack makes it say n revisions less than it has, as one that was restored from a backup does.
func (f *fakeEtcd) goBack(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.back = int64(n)
}

// save writes a snapshot as etcdctl does: the database with every revision, and its SHA-256 after it.
func (f *fakeEtcd) save(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, err := os.MkdirTemp("", "fake-etcd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "db")
	db, err := bolt.Open(file, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte("key"))
		if err != nil {
			return err
		}
		for _, kv := range f.history {
			name := fmt.Appendf(binary.BigEndian.AppendUint64(nil, uint64(kv.ModRevision)), "_%s", make([]byte, 8)) //nolint:gosec // counted from 2
			item := kv
			if kv.Value == nil {
				name, item = append(name, 't'), &mvccpb.KeyValue{Key: kv.Key}
			}
			value, err := proto.Marshal(item)
			if err != nil {
				return err
			}
			if err := bucket.Put(name, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return os.WriteFile(path, append(data, sum[:]...), 0o600)
}

// etcdCmd is the script's etcd, made by the first use; $ETCD is its address.
func etcdCmd(ts *testscript.TestScript, neg bool, args []string) {
	f, _ := ts.Value(etcdValue{}).(*fakeEtcd)
	if neg || f == nil || len(args) == 0 {
		ts.Fatalf("usage: etcd put PATH [KEYID] | delete PATH | cut PATH | other KEY [KEYID] | plain KEY | named PATH KEYID PROVIDER | save FILE | compact | back N | cluster N | term N | log N | role PREFIX | namespace UID | renew DURATION")
	}
	switch verb, rest := args[0], args[1:]; verb + " " + strconv.Itoa(len(rest)) {
	case "put 1", "put 2":
		ts.Check(f.put(rest[0], strings.Join(rest[1:], "")))
	case "delete 1":
		f.write("/registry/"+rest[0], nil)
	case "cut 1":
		f.write("/registry/"+rest[0], []byte("k8s:enc:kms:v2:hsm-kms:\x0a\xff"))
	case "save 1":
		ts.Check(f.save(ts.MkAbs(rest[0])))
	case "compact 0":
		f.compact()
	case "plain 1":
		ts.Check(f.putAt("/"+rest[0], "", ""))
	case "named 3":
		ts.Check(f.putAt("/registry/"+rest[0], rest[1], rest[2]))
	case "seal 2":
		ts.Check(f.seal(ts.MkAbs("run/kms.sock"), rest[0], rest[1] == "key"))
	case "move 2":
		f.move(rest[0], rest[1])
	case "other 1":
		f.write("/"+rest[0], nil)
	case "other 2":
		ts.Check(f.putAt("/"+rest[0], rest[1], "hsm-kms"))
	case "namespace 1":
		f.namespace(rest[0])
	case "renew 1":
		ahead, err := time.ParseDuration(rest[0])
		ts.Check(err)
		f.renew(ahead)
	case "role 0", "role 1":
		f.mu.Lock()
		defer f.mu.Unlock()
		f.role = strings.Join(rest, "")
	case "back 1", "cluster 1", "term 1", "log 1":
		n, err := strconv.Atoi(rest[0])
		ts.Check(err)
		if verb == "back" {
			f.goBack(n)
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		switch verb {
		case "term":
			f.term = uint64(n) //nolint:gosec // a test's number
		case "log":
			f.log = int64(n)
		default:
			f.cluster = uint64(n) //nolint:gosec // a test's number
		}
	default:
		ts.Fatalf("etcd: unknown: %s", strings.Join(args, " "))
	}
}

// etcdValue is the key of a script's fakeEtcd.
type etcdValue struct{}

// giveEtcd starts an etcd for a script, at $ETCD.
func giveEtcd(env *testscript.Env) error {
	f, stop, err := newFakeEtcd()
	if err != nil {
		return err
	}
	env.Defer(stop)
	env.Values[etcdValue{}] = f
	env.Setenv("ETCD", f.url)
	return nil
}
