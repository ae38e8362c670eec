package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

const (
	ringName       = "kube-secrets" // as package plugin configures it
	profileGCM     = "aes-gcm"
	profileHMAC    = "hmac-kdf"
	sealedDEKs     = 64 // that Decrypt goes round
	manySessions   = 32
	connectTimeout = 30 * time.Second // bounds the start of any process here
)

// rig is what is measured: processes and tokens in one folder, which goes with it. It is used by one goroutine.
type rig struct {
	options *options
	self    string // this program's own path, for its other roles
	dir     string
	n       *client
	ends    []func() error
	// children give the processes of what is measured; one that is restarted has another each time.
	children []func() int
}

func newRig(o *options) (*rig, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	// Short: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "kmsbench")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	w := &rig{options: o, self: self, dir: dir}
	w.atEnd(func() error { return os.RemoveAll(dir) })
	return w, nil
}

// pids are the processes of what is measured, as they are now.
func (w *rig) pids() []int {
	var pids []int
	for _, pid := range w.children {
		pids = append(pids, pid())
	}
	return pids
}

func (w *rig) atEnd(f func() error) { w.ends = append(w.ends, f) }

// close ends all that was started, last first.
func (w *rig) close() error {
	var errs []error
	for len(w.ends) > 0 {
		last := len(w.ends) - 1
		errs = append(errs, w.ends[last]())
		w.ends = w.ends[:last]
	}
	return errors.Join(errs...)
}

// startEmpty starts the server that N is measured of.
func (w *rig) startEmpty(ctx context.Context) error {
	socket := filepath.Join(w.dir, "empty.sock")
	child, err := proc.Start(proc.Spec{
		Name: "empty", Path: w.self, Args: []string{"-role", "empty", "-socket", socket}, Log: filepath.Join(w.dir, "empty.log"),
	})
	if err != nil {
		return err
	}
	w.atEnd(func() error { child.Kill(); return nil })
	w.children = append(w.children, child.PID)
	w.n, err = w.connect(ctx, socket, child)
	return err
}

// connect waits until the child listens, and has DEKs encrypted by it.
func (w *rig) connect(ctx context.Context, socket string, child *proc.Process) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := untilListening(ctx, socket); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, child.Tail(5))
	}
	c, err := dial(socket)
	if err != nil {
		return nil, err
	}
	w.atEnd(func() error { c.close(); return nil })
	return c, c.seal(ctx, sealedDEKs)
}

// subject is one plugin on a token of its own, and on the same token the bare calls in a loop, and the servers beside it.
type subject struct {
	profile string
	plugin  *plugin.Plugin
	client  *client
	bare    *bare
	beside  map[string]*client
	// The faulty modules in front of the token, one for each process, since they count for one; nil: none.
	fault, bareFault *faultp11.Module
}

// setup says how a subject differs from a plugin as it comes.
type setup struct {
	name, profile string
	faulty        bool   // a faulty module in front of the token
	extra, token  string // more configuration, and more of the token's
}

// start makes token, key and plugin, and waits until it serves.
func (w *rig) start(ctx context.Context, how setup) (*subject, error) {
	dir := filepath.Join(w.dir, how.name)
	token, err := softhsm.New(ctx, filepath.Join(dir, "t"), "bench", "")
	if err != nil {
		return nil, err
	}
	s := &subject{profile: how.profile, beside: map[string]*client{}}
	pluginToken, bareToken := *token, *token
	if how.faulty {
		if s.fault, err = install(filepath.Join(dir, "f"), token); err != nil {
			return nil, err
		}
		if s.bareFault, err = install(filepath.Join(dir, "g"), token); err != nil {
			return nil, err
		}
		pluginToken.Module, bareToken.Module = s.fault.Path(), s.bareFault.Path()
	}
	s.plugin, err = plugin.New(plugin.Options{
		Bin: w.options.Bin, Dir: filepath.Join(dir, "p"), Token: &pluginToken,
		Extra: "profile: " + how.profile + "\n" + how.extra, TokenExtra: how.token,
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.plugin.CreateKey(ctx); err != nil {
		return nil, err
	}
	if _, err := s.serve(ctx); err != nil {
		return nil, err
	}
	w.atEnd(s.stop)
	if s.bare, err = startBare(ctx, w.self, dir, &bareToken); err != nil {
		return nil, err
	}
	w.atEnd(func() error { s.bare.close(); return nil })
	w.children = append(w.children, func() int { return s.plugin.Process().PID() }, func() int { return s.bare.pid })
	for _, who := range beside {
		if who == whoU && how.profile != profileGCM {
			continue // nobody builds one with a key derivation
		}
		if s.beside[who], err = w.startBeside(ctx, dir, who, how.profile, &bareToken); err != nil {
			return nil, err
		}
	}
	return s, s.client.seal(ctx, sealedDEKs)
}

func install(dir string, token *softhsm.Token) (*faultp11.Module, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	return faultp11.Install(dir, token.Module, faultp11.Options{})
}

// serve starts the plugin and tells how long it took from there to the first Status that is ok.
func (s *subject) serve(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	start := time.Now()
	process, err := s.plugin.Serve()
	if err != nil {
		return 0, err
	}
	said := func(err error) error {
		return fmt.Errorf("starting the plugin (%s): %w\n%s", s.profile, err, process.Tail(5))
	}
	go func() { // one that ends early would never listen
		select {
		case <-process.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := untilListening(ctx, s.plugin.Socket()); err != nil {
		return 0, said(err)
	}
	if s.client, err = dial(s.plugin.Socket()); err != nil {
		return 0, err
	}
	for {
		status, err := s.client.status(ctx)
		switch {
		case err != nil:
			return 0, said(err)
		case status.Healthz == "ok":
			return time.Since(start), nil
		case ctx.Err() != nil:
			return 0, said(fmt.Errorf("healthz is %q", status.Healthz))
		}
	}
}

func (s *subject) stop() error {
	s.client.close()
	return s.plugin.Stop()
}

// restart is a stop and a start, with what the client has sealed kept.
func (s *subject) restart(ctx context.Context) (time.Duration, error) {
	sealed := s.client.sealed
	if err := s.stop(); err != nil {
		return 0, err
	}
	took, err := s.serve(ctx)
	if err == nil {
		s.client.sealed = sealed
	}
	return took, err
}

// delay makes every call of both faulty modules take that much longer.
func (s *subject) delay(d time.Duration) {
	s.fault.DelayAll(d)
	s.bareFault.DelayAll(d)
}
