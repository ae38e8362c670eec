package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// roleRead is the other role of this program: the bare reading, in a process of its own.
const roleRead = "read"

// barePage is how many objects a page of the bare reading has: what etcd report comes to with objects of 1.3 kB.
const barePage = 3000

// bareRead reads the range in pages at one revision and does nothing with it.
func bareRead(ctx context.Context, url string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, DialTimeout: startTimeout, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connecting to etcd: %w", err)
	}
	defer client.Close()
	began := time.Now()
	revision, objects := int64(0), 0
	for next := "/registry/"; ; {
		resp, err := client.Get(ctx, next, clientv3.WithRange("/registry0"), clientv3.WithLimit(barePage), clientv3.WithRev(revision))
		if err != nil {
			return fmt.Errorf("reading etcd: %w", err)
		}
		objects += len(resp.Kvs)
		if !resp.More {
			break
		}
		revision, next = resp.Header.GetRevision(), string(resp.Kvs[len(resp.Kvs)-1].Key)+"\x00"
	}
	tell("bare read of %d objects: %s", objects, time.Since(began).Round(time.Millisecond))
	return nil
}
