package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/kube"
)

const (
	// migrateBatch is what etcd takes in one transaction unless told otherwise.
	migrateBatch = 100
	parallel     = 8 // requests at a time, of both
)

// migration measures etcd migrate on an etcd and API server of its own, which are smaller: an API server keeps all Secrets in
// memory. Beside it, in turns, the same request comes from a client that does nothing else: what the API server can do.
func (w *rig) migration(ctx context.Context) error {
	if w.options.migrate == 0 {
		return nil
	}
	if _, err := w.plugin.Run(ctx, "keys", "rotate", "--activate-in", "0s"); err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, 3*startTimeout)
	defer cancel()
	if _, err := w.plugin.Start(starting); err != nil {
		return err
	}
	members, err := kube.NewMembers(w.programs, filepath.Join(w.dir, "m-etcd"), 1)
	if err != nil {
		return err
	}
	w.atEnd(members.Stop)
	server, err := w.startServer(starting, members)
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: members.URLs(), DialTimeout: startTimeout, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connecting to etcd: %w", err)
	}
	w.atEnd(client.Close)
	kubeconfig := filepath.Join(w.dir, "kubeconfig")
	if err := server.WriteKubeconfig(kubeconfig); err != nil {
		return err
	}
	patch, err := newPatcher(server)
	if err != nil {
		return err
	}
	var bare, ours, ratios []float64
	peak := int64(0)
	for range w.options.rounds {
		if err := w.putStale(ctx, client); err != nil {
			return err
		}
		sample, err := measure.Drive(ctx, measure.Load{Clients: parallel, Ops: w.options.migrate}, func(_, call int) error { return patch.one(ctx, call) })
		if err != nil {
			return err
		}
		if err := w.putStale(ctx, client); err != nil {
			return err
		}
		spent, err := w.etcdCommand(ctx, "migrate", "--endpoints", members.URLs()[0], "--kubeconfig", kubeconfig, "--server", server.URL(), "--resources", "secrets",
			"--rate", "1000000", "--parallel", fmt.Sprint(parallel))
		if err != nil {
			return err
		}
		rate := float64(w.options.migrate) / spent.took.Seconds()
		bare, ours, ratios, peak = append(bare, sample.Rate()), append(ours, rate), append(ratios, rate/sample.Rate()), max(peak, spent.peak)
	}
	w.Figure(fmt.Sprintf("the API server alone, %d rewrites, %d at a time", w.options.migrate, parallel), measure.Median(bare), "per second", nil)
	w.Figure("etcd migrate of as many, with its proof and its report", measure.Median(ours), "per second", nil)
	w.Figure("the same, of what the API server can do", measure.Median(ratios), "x", nil)
	w.Figure("etcd migrate, memory", mib(peak), "MiB", measure.Below(memoryGoal))
	return w.plugin.Stop()
}

func (w *rig) startServer(ctx context.Context, members *kube.Members) (*kube.Cluster, error) {
	if err := members.Launch(0); err != nil {
		return nil, err
	}
	if err := members.WaitReady(ctx); err != nil {
		return nil, err
	}
	server, err := kube.New(kube.Options{Bin: w.programs, Dir: filepath.Join(w.dir, "m-api"), Socket: w.plugin.Socket(), Etcd: members})
	if err != nil {
		return nil, err
	}
	w.atEnd(server.Stop)
	if err := server.StartAPIServer(ctx); err != nil {
		return nil, err
	}
	return server, server.WaitReady(ctx)
}

// putStale writes the Secrets under DEKs of keys that are not current.
func (w *rig) putStale(ctx context.Context, client *clientv3.Client) error {
	data := randomBytes(w.options.size)
	for first := 0; first < w.options.migrate; first += migrateBatch {
		if err := w.put(ctx, client, first, min(first+migrateBatch, w.options.migrate), data); err != nil {
			return fmt.Errorf("writing what is migrated: %w", err)
		}
	}
	return nil
}

// patcher asks an API server to store a Secret unchanged, as etcd migrate does. It is safe for concurrent use.
type patcher struct {
	http       *http.Client
	url, token string
}

func newPatcher(server *kube.Cluster) (*patcher, error) {
	roots, err := server.Roots()
	if err != nil {
		return nil, err
	}
	return &patcher{url: server.URL(), token: server.Token(), http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}}, nil
}

func (p *patcher) one(ctx context.Context, i int) error {
	namespace, name := nameOf(i)
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, p.url+"/api/v1/namespaces/"+namespace+"/secrets/"+name, bytes.NewReader([]byte("{}")))
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+p.token)
	req.Header.Set("Content-Type", "application/merge-patch+json")
	req.Header.Set("Accept", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
	resp, err := p.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the API server: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("rewriting a Secret: %s: %w", resp.Status, err)
	}
	return nil
}
