package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/hsm-kms/hsm-kms/test/bench/measure"
	"github.com/hsm-kms/hsm-kms/test/faultp11"
	"github.com/hsm-kms/hsm-kms/test/kube"
	"github.com/hsm-kms/hsm-kms/test/plugin"
	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

const (
	startTimeout = 90 * time.Second // of any one process here
	// quiet keeps the plugin's own probes and refreshes out of what is counted.
	quiet = "probeInterval: 10m\nrefreshInterval: 1h\n"
)

// variant is one that takes turns.
type variant struct {
	name  string
	store *store
	// server is shared by variants on one store, which differ in the delay.
	server *kube.Cluster
	delay  time.Duration // added to each PKCS#11 call
	boot   bool          // the plugin starts at the same moment, as on a node that boots
	away   bool          // the HSM is away, and the plugin is that with the outage hold
}

// rig is what is measured: token, plugin, etcds and API servers in one folder, which goes with it. It is used by one
// goroutine.
type rig struct {
	options  *options
	programs kubebin.Set
	dir      string
	token    *softhsm.Token
	plugin   *plugin.Plugin
	fault    *faultp11.Module
	hold     *plugin.Plugin // on its outage hold
	stores   []*store
	variants []variant
	ends     []func() error
}

func newRig(o *options, programs kubebin.Set) (*rig, error) {
	dir, err := os.MkdirTemp("", "kmsapi") // short: a socket's path has at most 107 bytes
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	w := &rig{options: o, programs: programs, dir: dir}
	w.atEnd(func() error { return os.RemoveAll(dir) })
	return w, nil
}

func (w *rig) atEnd(f func() error) { w.ends = append(w.ends, f) }

// close ends all that was started, last first.
func (w *rig) close() error {
	var errs []error
	for _, end := range slices.Backward(w.ends) {
		errs = append(errs, end())
	}
	w.ends = nil
	return errors.Join(errs...)
}

// start makes token, plugin and stores, and gives each API server a first life, in which it writes its certificate and
// what it wants to find in etcd.
func (w *rig) start(ctx context.Context) error {
	if err := w.startPlugin(ctx); err != nil {
		return err
	}
	cbc, err := cbcStore()
	if err != nil {
		return err
	}
	stores := []*store{plainStore(), cbc}
	for _, n := range w.options.deks {
		deks, err := makeDEKs(ctx, w.plugin.Socket(), n)
		if err != nil {
			return err
		}
		stores = append(stores, kmsStore(deks))
	}
	for _, s := range stores {
		if err := w.startStore(ctx, s); err != nil {
			return err
		}
	}
	if err := w.startHold(ctx); err != nil {
		return err
	}
	tell("%d stores of %d Secrets, with %s DEKs", len(stores), w.options.secrets, &w.options.deks)
	return w.startVariants(ctx)
}

func (w *rig) startPlugin(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if w.token, err = softhsm.New(ctx, filepath.Join(w.dir, "t"), "bench", ""); err != nil {
		return err
	}
	if w.plugin, w.fault, err = w.newPlugin("p", quiet); err != nil {
		return err
	}
	if _, err := w.plugin.CreateKey(ctx); err != nil {
		return err
	}
	for range w.options.keys - 1 {
		if _, err := w.plugin.RotateKey(ctx, 0); err != nil {
			return err
		}
	}
	w.atEnd(func() error { return w.plugin.Stop() })
	_, err = w.plugin.Start(ctx)
	return err
}

// newPlugin makes a plugin on the token, behind a faulty module of its own.
func (w *rig) newPlugin(name, extra string) (*plugin.Plugin, *faultp11.Module, error) {
	dir := filepath.Join(w.dir, name+"-module")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making a folder: %w", err)
	}
	fault, err := faultp11.Install(dir, w.token.Module, faultp11.Options{})
	if err != nil {
		return nil, nil, err
	}
	token := *w.token
	token.Module = fault.Path()
	p, err := plugin.New(plugin.Options{Bin: w.options.Bin, Dir: filepath.Join(w.dir, name), Token: &token, Extra: extra})
	return p, fault, err
}

// startHold starts the other plugin, has it open all DEKs, and takes its HSM away when its hold is armed.
func (w *rig) startHold(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var fault *faultp11.Module
	var err error
	if w.hold, fault, err = w.newPlugin("h", "probeInterval: 1s\noutageHold: 24h\n"); err != nil {
		return err
	}
	w.atEnd(func() error { return w.hold.Stop() })
	if _, err := w.hold.Start(ctx); err != nil {
		return err
	}
	for _, s := range w.stores {
		if err := s.open(ctx, w.hold.Socket()); err != nil {
			return err
		}
	}
	if err := w.untilHold(ctx, "is armed", func(s plugin.Status) bool { return s.Hold.Armed }); err != nil {
		return err
	}
	fault.FailAll(pkcs11.CKR_DEVICE_REMOVED).UntilCleared()
	return w.untilHold(ctx, "answers", func(s plugin.Status) bool { return s.Hold.Holding })
}

func (w *rig) untilHold(ctx context.Context, what string, is func(plugin.Status) bool) error {
	for tick := time.NewTicker(readyPoll); ; {
		status, err := w.hold.Status(ctx)
		if err == nil && is(status) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until the outage hold %s: %w (last: %+v, %w)", what, context.Cause(ctx), status, err)
		case <-tick.C:
		}
	}
}

func (w *rig) startStore(ctx context.Context, s *store) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if s.members, err = kube.NewMembers(w.programs, filepath.Join(w.dir, "etcd-"+measure.Joined(s.name)), 1); err != nil {
		return err
	}
	w.atEnd(s.members.Stop)
	s.etcd, err = clientv3.New(clientv3.Config{Endpoints: s.members.URLs(), DialTimeout: startTimeout, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("connecting to etcd: %w", err)
	}
	w.atEnd(s.etcd.Close)
	w.stores = append(w.stores, s)
	return s.fill(ctx, w.options.secrets, w.options.size)
}

// startVariants makes the variants. Those of the plugin differ in what a call of the HSM takes, and in whether there is one.
// With the fewest DEKs, one more has an API server that decodes one object after the other, as all did by default before 1.37.
func (w *rig) startVariants(ctx context.Context) error {
	for i, s := range w.stores {
		server, err := w.startServer(ctx, s, s.name, w.plugin)
		if err != nil {
			return err
		}
		if s.providers != nil {
			w.variants = append(w.variants, variant{name: s.name, store: s, server: server})
			continue
		}
		for _, delay := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond} {
			w.variants = append(w.variants, variant{name: fmt.Sprintf("%s, %d ms", s.name, delay.Milliseconds()), store: s, server: server, delay: delay})
		}
		away, err := w.startServer(ctx, s, s.name+" away", w.hold)
		if err != nil {
			return err
		}
		w.variants = append(w.variants, variant{name: s.name + awayName, store: s, server: away, away: true})
		if i > 2 {
			continue
		}
		w.variants = append(w.variants, variant{name: s.name + ", 20 ms, both start", store: s, server: server, delay: 20 * time.Millisecond, boot: true})
		if w.options.quick || !w.decodesAtOnce(ctx) {
			continue
		}
		if server, err = w.startServer(ctx, s, s.name+" serial", w.plugin, "--feature-gates=ConcurrentWatchObjectDecode=false"); err != nil {
			return err
		}
		w.variants = append(w.variants, variant{name: s.name + ", 20 ms, as up to 1.36", store: s, server: server, delay: 20 * time.Millisecond})
	}
	return nil
}

// awayName ends the names of variants without an HSM.
const awayName = ", HSM away"

// decodesAtOnce reports whether this API server decodes several objects of a watch at once unless told not to (the feature
// ConcurrentWatchObjectDecode: there since 1.31, the default since 1.37).
func (w *rig) decodesAtOnce(ctx context.Context) bool {
	version, err := measure.FirstLine(ctx, w.programs.Path("kube-apiserver"), "--version")
	return err == nil && minor(version) >= 37
}

// minor is the second number of "Kubernetes v1.37.2"; 0 when there is none.
func minor(version string) (n int) {
	_, number, _ := strings.Cut(version, "v1.")
	_, _ = fmt.Sscanf(number, "%d", &n) // 0 then
	return n
}

// startServer makes an API server on the store and lets it live once.
func (w *rig) startServer(ctx context.Context, s *store, name string, kms *plugin.Plugin, args ...string) (*kube.Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	server, err := kube.New(kube.Options{
		Bin: w.programs, Dir: filepath.Join(w.dir, measure.Joined(name)), Socket: kms.Socket(), Etcd: s.members, Args: args,
	})
	if err != nil {
		return nil, err
	}
	w.atEnd(server.Stop)
	if s.providers != nil {
		text, err := json.Marshal(s.configuration())
		if err != nil {
			return nil, fmt.Errorf("encoding the EncryptionConfiguration: %w", err)
		}
		if err := os.WriteFile(server.EncryptionConfig(), text, 0o600); err != nil {
			return nil, fmt.Errorf("writing the EncryptionConfiguration: %w", err)
		}
	}
	if err := server.StartAPIServer(ctx); err != nil {
		return nil, err
	}
	if err := server.WaitReady(ctx); err != nil {
		return nil, err
	}
	err = server.CreateNamespace(ctx, createdIn)
	if refused, ok := errors.AsType[*kube.StatusError](err); err != nil && (!ok || refused.Code != http.StatusConflict) {
		return nil, err // a conflict: the other API server on this store made it
	}
	tell("an API server: %s", name)
	return server, server.StopAPIServer()
}

// pids are the processes that run between turns.
func (w *rig) pids() []int {
	pids := []int{w.plugin.Process().PID(), w.hold.Process().PID()}
	for _, s := range w.stores {
		pids = append(pids, s.members.PIDs()...)
	}
	return pids
}

// rounds lets all variants take turns; each round begins with another.
func (w *rig) rounds(ctx context.Context, t *table) error {
	for _, v := range w.variants {
		t.variants = append(t.variants, v.name)
	}
	before, known := measure.CPUNow(w.pids()...)
	for round := range w.options.rounds {
		for i := range w.variants {
			v := w.variants[(i+round)%len(w.variants)]
			result, err := w.turn(ctx, v, round)
			if ctx.Err() != nil {
				return fmt.Errorf("measuring %s: %w", v.name, context.Cause(ctx))
			}
			if err != nil {
				return fmt.Errorf("measuring %s: %w\nthe end of the API server's log:\n%s", v.name, err, v.server.Log(5))
			}
			tell("round %d of %d: %s: ready after %s", round+1, w.options.rounds, v.name, result.Ready.Round(time.Millisecond))
			t.measured[v.name] = append(t.measured[v.name], result)
		}
	}
	if after, _ := measure.CPUNow(w.pids()...); known {
		t.others = fmt.Sprintf("%.0f percent of the processors were used by others", measure.Others(before, after))
	}
	return nil
}
