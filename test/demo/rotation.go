package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/kube"
)

// The demo's rotation is announced a few seconds ahead; in earnest it is minutes or days.
const activateIn = 3 * time.Second

// rotate makes a second version of the key and follows it into etcd.
func (d *demo) rotate(ctx context.Context) error {
	d.step("Rotating the master key: hsm-kms keys rotate; nothing is restarted")
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	key, err := d.plugin.RotateKey(ctx, activateIn)
	if err != nil {
		return err
	}
	d.say("made %s;\nthe plugin goes on under the old one for another %s", key.KeyID, activateIn)
	if err := until(ctx, func() (bool, error) {
		status, err := d.plugin.Status(ctx)
		return err == nil && status.KeyID == key.KeyID, err
	}); err != nil {
		return fmt.Errorf("waiting for the plugin to make %s current: %w", key.KeyID, err)
	}
	d.say("it is current; the API server asks at most a minute later")
	old := d.keyID
	d.keyID = key.KeyID
	if err := until(ctx, func() (bool, error) { return d.writesUnder(ctx, key.KeyID) }); err != nil {
		return fmt.Errorf("waiting for the API server to write under %s: %w", key.KeyID, err)
	}
	list, err := d.plugin.Run(ctx, "keys", "list")
	if err != nil {
		return err
	}
	d.say("%s", strings.TrimSpace(string(list)))
	raw, err := d.cluster.EtcdGet(ctx, secretKey)
	if err != nil {
		return err
	}
	if !bytes.Contains(raw, []byte(old)) {
		return errors.New("the Secret in etcd does not name the old key_id any more, although nobody wrote it")
	}
	d.say("a Secret that is written now is under the new key; %s/%s is under the old one, and is read as before:", namespace, name)
	return d.readSecret(ctx)
}

// writesUnder writes another Secret and reports whether etcd has it under keyID. Asking for the API server's health makes
// it ask the plugin, at most every 20 s.
func (d *demo) writesUnder(ctx context.Context, keyID string) (bool, error) {
	const other = "written-after-rotation"
	if _, _, err := d.cluster.Health(ctx, "/readyz/kms-providers"); err != nil {
		return false, err
	}
	path := "/api/v1/namespaces/" + namespace + "/secrets/" + other
	err := d.cluster.Do(ctx, http.MethodDelete, path, nil, nil)
	if status, ok := errors.AsType[*kube.StatusError](err); err != nil && (!ok || status.Code != http.StatusNotFound) {
		return false, err
	}
	if err := d.cluster.CreateSecret(ctx, namespace, other, map[string][]byte{"password": []byte(password)}); err != nil {
		return false, err
	}
	raw, err := d.cluster.EtcdGet(ctx, "/registry/secrets/"+namespace+"/"+other)
	return err == nil && bytes.Contains(raw, []byte(keyID)), err
}

// until asks five times a second until ok says so or ctx ends; the error is then what was seen last.
func until(ctx context.Context, ok func() (bool, error)) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
