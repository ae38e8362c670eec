package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
)

// migrate has what is under the old key rewritten.
func (d *demo) migrate(ctx context.Context) error {
	d.step("Rewriting what is under the old key, through the API server: hsm-kms etcd migrate")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	kubeconfig := filepath.Join(d.dir, "admin.conf")
	if err := d.cluster.WriteKubeconfig(kubeconfig); err != nil {
		return err
	}
	said, err := d.plugin.Run(ctx, "etcd", "migrate", "--endpoints", d.cluster.EtcdURL(), "--kubeconfig", kubeconfig, "--server", d.cluster.URL())
	if err != nil {
		return err
	}
	d.say("%s", strings.TrimSpace(string(said)))
	raw, err := d.cluster.EtcdGet(ctx, secretKey)
	if err != nil {
		return err
	}
	if bytes.Contains(raw, []byte(d.firstID)) || !bytes.Contains(raw, []byte(d.keyID)) {
		return errors.New("the Secret in etcd is not under the new key")
	}
	return d.readSecret(ctx)
}

// report is the evidence that nothing needs the old key any more.
func (d *demo) report(ctx context.Context) error {
	d.step("The evidence: hsm-kms etcd report --require-key current")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	said, err := d.plugin.Run(ctx, "etcd", "report", "--endpoints", d.cluster.EtcdURL(), "--require-key", "current")
	if err != nil {
		return err
	}
	d.say("%s", strings.TrimSpace(string(said)))
	d.say("exit code 0: every Secret is under the current key; a day later, keys retire would let the old one go")
	return nil
}
