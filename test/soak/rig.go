package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

const maxSessions = 8

// rig is a token, the faulty module in front of it, and the program that runs on it, in one folder.
type rig struct {
	dir    string
	module *faultp11.Module
	plugin *plugin.Plugin
	http   string // host:port
	conn   *grpc.ClientConn
	api    kmsapi.KeyManagementServiceClient
	keyID  string // from the first Status; it must never change
}

// newRig starts the program and waits until it is healthy.
func newRig(ctx context.Context, bin string) (*rig, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir, err := os.MkdirTemp("", "kmssoak") // short: a socket's path has at most 107 bytes
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	w := &rig{dir: dir}
	if err := w.start(ctx, bin); err != nil {
		return nil, errors.Join(err, w.close(false))
	}
	return w, nil
}

func (w *rig) start(ctx context.Context, bin string) error {
	token, err := softhsm.New(ctx, filepath.Join(w.dir, "token"), "soak", "")
	if err != nil {
		return err
	}
	faulty := filepath.Join(w.dir, "faulty")
	if err := os.Mkdir(faulty, 0o700); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	if w.module, err = faultp11.Install(faulty, token.Module, faultp11.Options{SoftHSMConf: token.Conf()}); err != nil {
		return err
	}
	used := *token
	used.Module = w.module.Path()
	if w.http, err = proc.FreeAddress(); err != nil {
		return err
	}
	w.plugin, err = plugin.New(plugin.Options{
		Bin: bin, Dir: filepath.Join(w.dir, "p"), Token: &used, HTTP: w.http,
		TokenExtra: fmt.Sprintf("maxSessions: %d, callTimeout: 1s", maxSessions),
		Extra:      "probeInterval: 1s\nrefreshInterval: 1s",
	})
	if err != nil {
		return err
	}
	if _, err := w.plugin.CreateKey(ctx); err != nil {
		return err
	}
	status, err := w.plugin.Start(ctx)
	if err != nil {
		return err
	}
	w.keyID = status.KeyID
	w.module.ResetCounters() // those of `keys create`
	if w.conn, err = kmsplugin.Dial(w.plugin.Socket()); err != nil {
		return err
	}
	w.api = kmsapi.NewKeyManagementServiceClient(w.conn)
	return nil
}

// stop ends the program as its supervisor would; the error is of one that did not drain, or not with exit 0.
func (w *rig) stop() error {
	if w.plugin == nil || w.plugin.Process() == nil {
		return nil
	}
	w.module.Clear()
	if err := w.plugin.Stop(); err != nil {
		return err
	}
	if code := w.plugin.Process().ExitCode(); code != 0 {
		return fmt.Errorf("hsm-kms serve ended with exit code %d\n%s", code, w.plugin.Process().Tail(20))
	}
	return nil
}

// close ends all that was started; a second stop does nothing. The folder stays when keep says so.
func (w *rig) close(keep bool) error {
	var errs []error
	if w.conn != nil {
		errs = append(errs, w.conn.Close())
	}
	if keep {
		_ = w.stop() // has been told of already
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, w.stop(), os.RemoveAll(w.dir))...)
}

// heal clears all faults and waits until the program is well.
func (w *rig) heal(ctx context.Context) (took time.Duration, err error) {
	w.module.Clear()
	ctx, cancel := context.WithTimeout(ctx, healing)
	defer cancel()
	for start := time.Now(); ; pause(ctx, 50*time.Millisecond) {
		if err = w.well(ctx); err == nil {
			return time.Since(start), nil
		}
		if ctx.Err() != nil {
			return time.Since(start), fmt.Errorf("not well %s after the faults were over: %w", healing, err)
		}
	}
}

// well asks for Status, which must be ok, and has a DEK sealed and opened.
func (w *rig) well(ctx context.Context) error {
	answer, err := w.api.Status(ctx, &kmsapi.StatusRequest{})
	if err != nil {
		return err
	}
	if answer.Healthz != "ok" {
		return fmt.Errorf("healthz is %q", answer.Healthz)
	}
	dek := newDEK()
	sealed, err := w.api.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: dek, Uid: requestUID})
	if err != nil {
		return err
	}
	opened, err := w.api.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId, Uid: requestUID})
	if err == nil && !bytes.Equal(opened.Plaintext, dek) {
		err = errors.New("wrong plaintext")
	}
	return err
}
