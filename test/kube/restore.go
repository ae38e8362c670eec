package kube

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// Restore makes the data of a cluster of one member from a snapshot, as an operator does with etcdutl and what flags of it
// are added. Launch starts it.
func (m *Members) Restore(ctx context.Context, snapshot string, flags ...string) error {
	if len(m.members) != 1 {
		return errors.New("restoring etcd: only a cluster of one member is known")
	}
	it := &m.members[0]
	args := append([]string{
		"snapshot", "restore", snapshot, "--data-dir", filepath.Join(m.dir, it.name),
		"--name", it.name, "--initial-cluster", it.name + "=" + it.peer, "--initial-advertise-peer-urls", it.peer,
	}, flags...)
	out, err := proc.Command(ctx, m.bin.Path("etcdutl"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("restoring etcd from %s: %w: %s", snapshot, err, out)
	}
	return nil
}
