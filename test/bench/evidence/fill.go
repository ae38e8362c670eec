package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hsm-kms/hsm-kms/test/evidence/kubestore"
)

// batch is how many objects one transaction writes.
const batch = 500

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// nameOf gives the namespace and name of the i-th Secret; a few hundred share a namespace.
func nameOf(i int) (namespace, name string) {
	return fmt.Sprintf("namespace-%05d", i/300), fmt.Sprintf("secret-%07d", i)
}

// key is its etcd key.
func key(i int) string {
	namespace, name := nameOf(i)
	return "/registry/secrets/" + namespace + "/" + name
}

// value is what the API server would store of it. DEKs take turns, as those of several API servers and months do.
func (w *rig) value(i int, data []byte) ([]byte, error) {
	namespace, name := nameOf(i)
	plain, err := kubestore.Secret(namespace, name, data)
	if err != nil {
		return nil, err
	}
	return w.deks[i%len(w.deks)].Value(key(i), plain)
}

func (w *rig) fillAll(ctx context.Context) error { return w.fill(ctx, 0, w.options.objects) }

// fill writes the Secrets from one number to another to etcd, from twice as many goroutines as there are CPUs.
func (w *rig) fill(ctx context.Context, from, to int) error {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	data := randomBytes(w.options.size)
	firsts := make(chan int)
	var writers sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		writers.Go(func() {
			for first := range firsts {
				if err := w.put(ctx, w.client, first, min(first+batch, to), data); err != nil {
					cancel(err)
				}
			}
		})
	}
	for first := from; first < to && ctx.Err() == nil; first += batch {
		firsts <- first
		if done := first - from; done%100_000 == 0 && done > 0 {
			tell("%d of %d Secrets written, %s", first, to, time.Since(began).Round(time.Second))
		}
	}
	close(firsts)
	writers.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("filling etcd: %w", context.Cause(ctx))
	}
	took := time.Since(began)
	tell("%d Secrets written, %s, %.0f per second", to, took.Round(time.Second), float64(to-from)/took.Seconds())
	return nil
}

func (w *rig) put(ctx context.Context, client *clientv3.Client, first, end int, data []byte) error {
	ops := make([]clientv3.Op, 0, end-first)
	for i := first; i < end; i++ {
		value, err := w.value(i, data)
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(key(i), string(value)))
	}
	_, err := client.Txn(ctx).Then(ops...).Commit()
	return err
}
