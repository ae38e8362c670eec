package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// roleRead is the other role of this program: the bare reading, in a process of its own.
const roleRead = "read"

// barePage is how many objects a page of the bare reading has: what etcd report comes to with objects of 1.3 kB.
const barePage = 3000

// bareRead reads the Secrets in pages at one revision, in several ranges of as many objects at once, and does nothing with them.
func bareRead(ctx context.Context, url string, objects, ranges int) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: startTimeout, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connecting to etcd: %w", err)
	}
	defer client.Close()
	first, err := client.Get(ctx, "/registry/", clientv3.WithRange(everything), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("reading etcd: %w", err)
	}
	began := time.Now()
	var readers sync.WaitGroup
	var read atomic.Int64
	errs := make([]error, ranges)
	for i := range ranges {
		from, to := "/registry/", everything
		if i > 0 {
			from = key(i * objects / ranges)
		}
		if i < ranges-1 {
			to = key((i + 1) * objects / ranges)
		}
		readers.Go(func() { errs[i] = readRange(ctx, client, from, to, first.Header.GetRevision(), &read) })
	}
	readers.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("reading etcd: %w", err)
	}
	if read.Load() != first.Count {
		return fmt.Errorf("reading etcd: %d objects of %d", read.Load(), first.Count)
	}
	tell("bare read of %d objects in ranges: %d: %s", read.Load(), ranges, time.Since(began).Round(time.Millisecond))
	return nil
}

// everything ends the range of all that an API server keeps.
const everything = "/registry0"

func readRange(ctx context.Context, client *clientv3.Client, next, end string, revision int64, read *atomic.Int64) error {
	for {
		resp, err := client.Get(ctx, next, clientv3.WithRange(end), clientv3.WithLimit(barePage), clientv3.WithRev(revision))
		if err != nil {
			return err
		}
		read.Add(int64(len(resp.Kvs)))
		if !resp.More {
			return nil
		}
		next = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}
