package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/doctor"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
)

func (c *command) status() *cobra.Command {
	var socket string
	var wait time.Duration
	cmd := c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "status",
		Short: "Ask a running plugin for its status, as kube-apiserver does",
		Long: `Sends over gRPC the request that kube-apiserver sends every minute. Exits 0 when the answer is ok, 1 when it is not or
when nothing answers. Without --socket, it takes the socket from the configuration. --wait repeats the request until the
answer is ok, and prints the last one.

A read ring that cannot be used is shown, and does not change the exit code: Status does not depend on it. With --ring
NAME the command also exits 1 unless the plugin has proven every key of that ring. The outage hold is shown if the plugin
has one, and does not change the exit code either.`,
		Example: `  hsm-kms status
  hsm-kms status --wait 1m
  hsm-kms status --ring kube-old
  hsm-kms status --socket /run/hsm-kms/kms.sock -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				cfg, err := config.Load(c.configPath)
				if err != nil {
					return err
				}
				socket = cfg.Socket.Path
			}
			return c.askStatus(cmd.Context(), socket, wait)
		},
	})))
	duration.Var(cmd.Flags(), &wait, "wait", 0, "how long to wait for ok")
	cmd.Flags().StringVar(&socket, "socket", "", "the plugin's Unix socket (default: the configuration's)")
	return cmd
}

// statusJSON is the answer for programs. Fields and names are a contract.
type statusJSON struct {
	Version string        `json:"version"`
	Healthz string        `json:"healthz"`
	KeyID   string        `json:"keyID"`
	Error   string        `json:"error,omitempty"`
	Pending []pendingJSON `json:"pending,omitempty"`
	// ReadRings are the rings that the plugin only reads.
	ReadRings []readRingJSON `json:"readRings,omitempty"`
	// Hold is the outage hold, if the plugin has one.
	Hold *holdJSON `json:"hold,omitempty"`
}

// readRingJSON is a ring that is only read.
type readRingJSON struct {
	Ring     string `json:"ring"`
	OK       bool   `json:"ok"`
	Keys     int    `json:"keys"`
	Proven   int    `json:"proven"` // sealed and opened with on a token that can be reached
	Retiring bool   `json:"retiring"`
	Problem  string `json:"problem,omitempty"`
}

// pendingJSON is a key that is to become current.
type pendingJSON struct {
	KeyID     string `json:"keyID"`
	Activates string `json:"activates"`
	Ready     bool   `json:"ready"`
	Deferred  bool   `json:"deferred,omitempty"`
	Reason    string `json:"reason,omitempty"` // deferred: why
	Until     string `json:"until,omitempty"`  // deferred: when it becomes current at the latest; none: without limit
}

// statusPause is between two questions of --wait.
const statusPause = 250 * time.Millisecond

// statusWithin asks until the answer is ok, also about the ring if one is named, or no time is left; once at least.
func statusWithin(ctx context.Context, socket, ring string, wait time.Duration) (kmsplugin.StatusAnswer, error) {
	for end := time.Now().Add(wait); ; {
		once, cancel := context.WithTimeout(ctx, kmsplugin.StatusTimeout)
		answer, err := kmsplugin.StatusOf(once, socket)
		cancel()
		if err == nil && answer.Healthz == "ok" && (ring == "" || statusOf(answer).proves(ring) == nil) || time.Until(end) < statusPause {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(statusPause):
		}
	}
}

// statusOf is the answer for programs.
func statusOf(answer kmsplugin.StatusAnswer) statusJSON {
	printed := statusJSON{Version: answer.Version, Healthz: answer.Healthz, KeyID: answer.KeyID, Hold: holdOf(answer.Hold)}
	for _, p := range answer.Pending {
		pending := pendingJSON{KeyID: p.Key.String(), Activates: p.Activates.UTC().Format(rfc3339Milli), Ready: p.Ready, Deferred: p.Deferred, Reason: p.Why}
		if !p.Until.IsZero() {
			pending.Until = p.Until.UTC().Format(rfc3339Milli)
		}
		printed.Pending = append(printed.Pending, pending)
	}
	for _, r := range answer.ReadRings {
		read := readRingJSON{Ring: r.Ring, OK: r.Problem == nil, Keys: r.Keys, Proven: r.Proven, Retiring: r.Retiring}
		if r.Problem != nil {
			read.Problem = r.Problem.Error()
		}
		printed.ReadRings = append(printed.ReadRings, read)
	}
	return printed
}

func (c *command) askStatus(ctx context.Context, socket string, wait time.Duration) error {
	answer, err := statusWithin(ctx, socket, c.ring, wait)
	printed := statusOf(answer)
	if err != nil {
		// The plugin's own message, without what the client put around it for people.
		printed.Error = status.Convert(rootStatus(err)).Message()
	}
	if c.structured() {
		if err := c.json(printed); err != nil {
			return err
		}
	} else if err == nil {
		if err := c.table(printed.rows()); err != nil {
			return err
		}
	}
	switch {
	case err != nil:
		return app.Finding(err)
	case printed.Healthz != "ok":
		return app.Finding(hint.Wrap(fmt.Errorf("the plugin is not healthy: %s", printed.Healthz), "its log says why and what to do"))
	case c.ring != "":
		return printed.proves(c.ring)
	}
	return nil
}

// proves is a finding unless the plugin has proven every key of the ring; that of the ring which it writes under is in healthz.
func (s statusJSON) proves(ring string) error {
	if strings.HasPrefix(s.KeyID, ring+"/") {
		return nil
	}
	i := slices.IndexFunc(s.ReadRings, func(r readRingJSON) bool { return r.Ring == ring })
	if i < 0 {
		advice := "check that readRings of its configuration names it, and restart the plugin: it reads its configuration at the start only"
		if s.Hold != nil && s.Hold.Holding {
			advice = doctor.AfterHold + advice
		}
		return app.Finding(hint.Wrap(fmt.Errorf("the plugin has no ring %s", ring), advice))
	}
	if r := s.ReadRings[i]; !r.OK {
		return app.Finding(hint.Wrap(fmt.Errorf("the read ring %s: %s; %d of %d keys are proven", ring, r.Problem, r.Proven, r.Keys), "see what is wrong with: hsm-kms doctor --ring "+ring))
	}
	return nil
}

// rows is the answer for people.
func (s statusJSON) rows() [][]string {
	rows := [][]string{{"healthz", s.Healthz}, {"key_id", s.KeyID}, {"version", s.Version}}
	for _, p := range s.Pending {
		state := "not ready yet"
		switch {
		case p.Deferred:
			state = "due, and held back: " + p.Reason
		case p.Ready:
			state = "ready"
		}
		rows = append(rows, []string{"pending", fmt.Sprintf("%s (current at %s; %s)", p.KeyID, p.Activates, state)})
	}
	for _, r := range s.ReadRings {
		state := fmt.Sprintf("%s (%d of %d keys proven", r.Ring, r.Proven, r.Keys)
		if r.Retiring {
			state += "; retiring"
		}
		if !r.OK {
			state += "; " + r.Problem + ": do not restart kube-apiserver here while etcd holds its key_ids"
		}
		rows = append(rows, []string{"read ring", state + ")"})
	}
	if s.Hold != nil {
		rows = append(rows, []string{"outage hold", s.Hold.words()})
	}
	return rows
}

// rootStatus is the error that carries the gRPC status.
func rootStatus(err error) error {
	if withStatus, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return withStatus
	}
	return err
}
