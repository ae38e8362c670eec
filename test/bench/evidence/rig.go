package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

const (
	providerName = "hsm-kms"
	grace        = 15 * time.Second
	startTimeout = 30 * time.Second
)

// rig is what is measured: token, plugin and etcd in one folder, which goes with it. It is used by one goroutine.
type rig struct {
	measure.Figures
	options  *options
	programs kubebin.Set
	dir      string
	token    *softhsm.Token
	plugin   *plugin.Plugin
	etcd     *proc.Process
	url      string
	client   *clientv3.Client
	deks     []*kubestore.DEK
	results  []result
	ends     []func() error // of what was started last, last first
}

func (w *rig) atEnd(f func() error) { w.ends = append(w.ends, f) }

// start makes the token and starts etcd.
func (w *rig) start(ctx context.Context) error {
	var err error
	if w.token, err = softhsm.New(ctx, filepath.Join(w.dir, "hsm"), "bench", ""); err != nil {
		return err
	}
	w.plugin, err = plugin.New(plugin.Options{Bin: w.options.Bin, Dir: filepath.Join(w.dir, "p"), Token: w.token})
	if err != nil {
		return err
	}
	client, err := proc.FreeAddress()
	if err != nil {
		return err
	}
	peer, err := proc.FreeAddress()
	if err != nil {
		return err
	}
	w.url = "http://" + client
	w.etcd, err = proc.Start(proc.Spec{
		Name: "etcd", Path: w.programs.Path("etcd"), Log: filepath.Join(w.dir, "etcd.log"),
		Args: []string{
			"--data-dir=" + filepath.Join(w.dir, "etcd"), "--log-level=error",
			"--snapshot-count=100", "--snapshot-catchup-entries=10", // a batch is large, and etcd keeps the last ones in memory
			"--unsafe-no-fsync", "--quota-backend-bytes=17179869184",
			"--max-txn-ops=1000", "--max-request-bytes=10485760", "--listen-client-urls=" + w.url, "--advertise-client-urls=" + w.url,
			"--listen-peer-urls=http://" + peer, "--initial-advertise-peer-urls=http://" + peer, "--initial-cluster=default=http://" + peer,
		},
	})
	if err != nil {
		return err
	}
	w.client, err = clientv3.New(clientv3.Config{Endpoints: []string{w.url}, DialTimeout: startTimeout, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connecting to etcd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for ; ; time.Sleep(100 * time.Millisecond) {
		_, err := w.client.Get(ctx, "x", clientv3.WithCountOnly())
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !w.etcd.Running() {
			return fmt.Errorf("waiting for etcd: %w\n%s", err, w.etcd.Tail(20))
		}
	}
}

func (w *rig) close() error {
	var errs []error
	for _, end := range slices.Backward(w.ends) {
		errs = append(errs, end())
	}
	if w.client != nil {
		errs = append(errs, w.client.Close())
	}
	if w.etcd != nil {
		errs = append(errs, w.etcd.Stop(grace))
	}
	if w.plugin != nil {
		errs = append(errs, w.plugin.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// makeDEKs has the plugin wrap DEKs under one key after the other.
func (w *rig) makeDEKs(ctx context.Context) error {
	for i := range w.options.keys {
		args := []string{"keys", "rotate", "--activate-in", "0s"}
		if i == 0 {
			args = []string{"keys", "create"}
		}
		if _, err := w.plugin.Run(ctx, args...); err != nil {
			return err
		}
		startCtx, cancel := context.WithTimeout(ctx, startTimeout)
		status, err := w.plugin.Start(startCtx)
		cancel()
		if err != nil {
			return err
		}
		n := w.options.deks*(i+1)/w.options.keys - len(w.deks)
		if err := w.wrap(ctx, status.KeyID, n); err != nil {
			return err
		}
		if err := w.plugin.Stop(); err != nil {
			return err
		}
	}
	tell("%d DEKs under %d keys", len(w.deks), w.options.keys)
	return nil
}

// wrap asks the running plugin for n DEKs.
func (w *rig) wrap(ctx context.Context, keyID string, n int) error {
	conn, err := grpc.NewClient("unix://"+w.plugin.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return fmt.Errorf("connecting to the plugin: %w", err)
	}
	defer conn.Close()
	api := kmsapi.NewKeyManagementServiceClient(conn)
	for range n {
		dek := &kubestore.DEK{Provider: providerName, Plain: randomBytes(32)}
		answer, err := api.Encrypt(ctx, &kmsapi.EncryptRequest{Uid: "bench", Plaintext: dek.Plain})
		if err != nil {
			return fmt.Errorf("wrapping a DEK: %w", err)
		}
		if answer.GetKeyId() != keyID {
			return fmt.Errorf("wrapping a DEK: under %s, and not %s", answer.GetKeyId(), keyID)
		}
		dek.KeyID, dek.Wrapped = answer.GetKeyId(), answer.GetCiphertext()
		w.deks = append(w.deks, dek)
	}
	return nil
}
