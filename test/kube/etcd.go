package kube

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Etcd is a client of the cluster's etcd, the same at each call; Stop closes it.
func (c *Cluster) Etcd() (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, nil
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: c.etcd.URLs(), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd: %w", err)
	}
	c.client = client
	return client, nil
}

// EtcdURL is the address of etcd, of several members that of the first.
func (c *Cluster) EtcdURL() string { return c.etcd.URLs()[0] }

// EtcdGet reads the bytes that etcd holds under a key, such as /registry/secrets/NAMESPACE/NAME.
func (c *Cluster) EtcdGet(ctx context.Context, key string) ([]byte, error) {
	client, err := c.Etcd()
	if err != nil {
		return nil, err
	}
	resp, err := client.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("reading %s from etcd: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("reading %s from etcd: there is no such key", key)
	}
	return resp.Kvs[0].Value, nil
}
