// Package plugin runs the hsm-kms program the way its user does: a configuration file, commands, `serve` as a child
// process. The demo and the end-to-end tests share it. It knows the documented contract (commands, exit codes, JSON
// fields, configuration fields) and must import no package of the program: what it can do, any user can.
package plugin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/test/softhsm"
	"github.com/hsm-kms/hsm-kms/test/tools/proc"
)

// stopGrace is how long `serve` may take to drain.
const stopGrace = 10 * time.Second

// Options say what to configure. Everything is in Dir.
type Options struct {
	Bin   string // path of hsm-kms
	Dir   string // short: the socket in it has at most 107 bytes of path
	Token *softhsm.Token
	Extra string // more lines of configuration, such as "probeInterval: 1s"
	// TokenExtra are more fields of the token, in one line: "maxSessions: 32, callTimeout: 1s".
	TokenExtra string
	HTTP       string // host:port of metrics and health; empty: off
	Audit      string // path of the audit log; empty: in Dir
	AuditExtra string // more fields of audit, in one line: "required: true"
}

// Plugin is one configuration of hsm-kms and at most one running `serve`. Start and stop it from one goroutine.
type Plugin struct {
	opts   Options
	served *proc.Process
}

// New makes the folder and writes the configuration: socket, state and audit log in Dir, our own uid allowed.
func New(opts Options) (*Plugin, error) {
	p := &Plugin{opts: opts}
	for _, dir := range []string{opts.Dir, p.path("state")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making a folder of the plugin: %w", err)
		}
	}
	text := fmt.Sprintf(`apiVersion: hsm-kms/v1
kind: PluginConfiguration
socket:
  path: %q
  allowedUIDs: [%d]
keyRing: kube-secrets
tokens:
  - {name: softhsm, module: %q, label: %q, pinFile: %q, %s}
stateDir: %q
http: {address: %q}
audit: {path: %q, %s}
%s
`, p.Socket(), os.Getuid(), opts.Token.Module, opts.Token.Label, opts.Token.PINFile, opts.TokenExtra, p.path("state"), opts.HTTP, p.AuditLog(), opts.AuditExtra, opts.Extra)
	if err := os.WriteFile(p.Config(), []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("writing the plugin's configuration: %w", err)
	}
	return p, nil
}

// Config is the path of the configuration file.
func (p *Plugin) Config() string { return p.path("config.yaml") }

// Socket is the path of the socket.
func (p *Plugin) Socket() string { return p.path("kms.sock") }

// AuditLog is the path of the audit log.
func (p *Plugin) AuditLog() string { return cmp.Or(p.opts.Audit, p.path("audit.log")) }

// Log is the path of the file with what `serve` wrote to stdout and stderr, over all its starts.
func (p *Plugin) Log() string { return p.path("serve.log") }

func (p *Plugin) path(name string) string { return filepath.Join(p.opts.Dir, name) }

// ExitError is the end of a command with another code than 0.
type ExitError struct {
	Args   []string
	Code   int // 1: a finding or a refusal; 2: cannot run
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("hsm-kms %s: exit code %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs one command with --config and gives its stdout, also beside an *ExitError.
func (p *Plugin) Run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := proc.Command(ctx, p.opts.Bin, append(slices.Clone(args), "--config", p.Config())...)
	cmd.Env = append(os.Environ(), p.opts.Token.Env()...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		err = &ExitError{args, exit.ExitCode(), stderr.String()}
	} else if err != nil {
		err = fmt.Errorf("running hsm-kms %s: %w", strings.Join(args, " "), errors.Join(err, ctx.Err()))
	}
	return stdout.Bytes(), err
}

// Key is an entry of `keys list`.
type Key struct {
	KeyID            string     `json:"keyID"`
	Ring             string     `json:"ring"`
	ID               string     `json:"id"`
	State            string     `json:"state"`
	Activates        *time.Time `json:"activates"` // nil: always
	Fingerprint      string     `json:"fingerprint"`
	Sensitive        bool       `json:"sensitive"`
	Extractable      bool       `json:"extractable"`
	NeverExtractable bool       `json:"neverExtractable"`
	Local            bool       `json:"local"`
	Tokens           []string   `json:"tokens"`
}

// CreateKey makes the first key of the ring.
func (p *Plugin) CreateKey(ctx context.Context) (Key, error) {
	var key Key
	return key, p.runJSON(ctx, &key, "keys", "create")
}

// RotateKey makes the next version, current after activateIn.
func (p *Plugin) RotateKey(ctx context.Context, activateIn time.Duration, flags ...string) (Key, error) {
	var key Key
	return key, p.runJSON(ctx, &key, append([]string{"keys", "rotate", "--activate-in", activateIn.String()}, flags...)...)
}

// Keys lists the ring.
func (p *Plugin) Keys(ctx context.Context) ([]Key, error) {
	var keys []Key
	return keys, p.runJSON(ctx, &keys, "keys", "list")
}

// Status is the answer of `status`.
type Status struct {
	Version string `json:"version"`
	Healthz string `json:"healthz"`
	KeyID   string `json:"keyID"`
	Error   string `json:"error"`
	Hold    struct {
		Armed   bool `json:"armed"`
		Holding bool `json:"holding"`
	} `json:"hold"` // zero while outageHold is off
}

// Status asks the running plugin. An answer that is not healthy is an *ExitError with code 1, beside what it says.
func (p *Plugin) Status(ctx context.Context) (Status, error) {
	var status Status
	return status, p.runJSON(ctx, &status, "status")
}

// runJSON decodes stdout; with exit code 1 too, because a finding comes as JSON as well.
func (p *Plugin) runJSON(ctx context.Context, out any, args ...string) error {
	data, err := p.Run(ctx, append(args, "-o", "json")...)
	exit, ok := errors.AsType[*ExitError](err)
	if err != nil && (!ok || exit.Code != 1 || len(data) == 0) {
		return err
	}
	if jsonErr := json.Unmarshal(data, out); jsonErr != nil {
		return errors.Join(err, fmt.Errorf("decoding what hsm-kms %s printed: %w: %q", strings.Join(args, " "), jsonErr, data))
	}
	return err
}

// Serve starts `serve` and does not wait for it.
func (p *Plugin) Serve() (*proc.Process, error) {
	served, err := proc.Start(proc.Spec{
		Name: "hsm-kms", Path: p.opts.Bin, Args: []string{"serve", "--config", p.Config()},
		Env: p.opts.Token.Env(), Log: p.Log(),
	})
	if err != nil {
		return nil, err
	}
	p.served = served
	return served, nil
}

// Start starts `serve` and waits until Status says ok.
func (p *Plugin) Start(ctx context.Context) (Status, error) {
	served, err := p.Serve()
	if err != nil {
		return Status{}, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := p.Status(ctx)
		if err == nil && status.Healthz == "ok" {
			return status, nil
		}
		select {
		case <-ctx.Done():
			return Status{}, fmt.Errorf("waiting for the plugin: %w (last: %w)\n%s", context.Cause(ctx), err, served.Tail(20))
		case <-served.Done():
			return Status{}, fmt.Errorf("starting the plugin: it ended with exit code %d; the end of its log:\n%s", served.ExitCode(), served.Tail(20))
		case <-tick.C:
		}
	}
}

// Process is the last `serve`, nil when there was none.
func (p *Plugin) Process() *proc.Process { return p.served }

// Kill ends `serve` with SIGKILL: its socket stays behind.
func (p *Plugin) Kill() {
	if p.served != nil {
		p.served.Kill()
	}
}

// Stop ends `serve` with SIGTERM and waits until it has drained.
func (p *Plugin) Stop() error {
	if p.served == nil {
		return nil
	}
	return p.served.Stop(stopGrace)
}
