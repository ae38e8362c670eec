package doctor

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/duration"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

// askWait is kube-apiserver's own default for a call.
const askWait = 3 * time.Second

// recoverWait is how long a plugin may take to log in once the PIN that it was refused is accepted: it tries again every few
// seconds.
const recoverWait = 15 * time.Second

// plugin compares with the plugin that runs on this machine, if one does. ring may be nil.
func (d *doctor) plugin(ctx context.Context, ring *ringSeen) {
	const check = "plugin"
	path := cmp.Or(d.Socket, d.cfg.Socket.Path)
	connect, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(connect, "unix", path)
	switch {
	case socket.NobodyListens(err):
		if d.Socket != "" {
			d.fail(check, "", "nobody answers on "+path, "start it with hsm-kms serve, or give the socket.path of the one that runs with --socket")
			return
		}
		if why := d.belongsHere(path); why != "" {
			d.fail(check, "", fmt.Sprintf("nobody answers on %s, and a plugin belongs there: %s", path, why),
				"find out why it does not run: systemctl status hsm-kms, or crictl ps -a and the log of the pod; kube-apiserver cannot read a Secret before it does")
			return
		}
		d.pass(check, "", "none runs: nobody answers on "+path)
		d.httpAddress(ctx)
		return
	case err != nil:
		d.warn(check, "", fmt.Sprintf("connecting to %s: %v", path, err), "run doctor as root, or as a user that socket.mode lets in")
		return
	}
	who := processBehind(conn)
	_ = conn.Close()
	answer, err := d.ask(ctx, path)
	switch {
	case err != nil:
		d.failure(check, "", err, "the plugin's log has the cause, and what to do about it")
	case answer.Healthz != "ok":
		d.fail(check, "", fmt.Sprintf("the plugin on %s says: %s", path, answer.Healthz), "fix the findings above; the plugin's log has the same with a hint")
	default:
		d.compare(envelope.KeyOf(answer.KeyID), path, ring)
	}
	if err == nil {
		d.compareRead(answer.ReadRings)
		d.hold(answer.Hold)
	}
	d.process(who)
	if err == nil && answer.Hold != nil && answer.Hold.Holding {
		d.restartLater()
	}
}

// hold looks at the outage hold of the plugin that runs; nil: it has none.
func (d *doctor) hold(state *holdfile.State) {
	const check = "hold"
	limit := d.cfg.OutageHold.Std()
	switch {
	case state == nil && limit == 0:
	case state == nil:
		d.warn(check, "", fmt.Sprintf("the configuration has outageHold: %s, and the plugin that runs has no hold", duration.String(limit)), "restart the plugin: it reads its configuration at the start only")
	case state.Holding:
		d.warn(check, "", fmt.Sprintf("the plugin answers without the HSM since %s, until %s at the latest", stamp(state.Since), stamp(state.Until)),
			"repair the HSM, and do not stop the plugin before: what it holds is in its memory only")
	case limit != state.Limit:
		d.warn(check, "", fmt.Sprintf("the configuration has outageHold: %s, and the plugin that runs has %s", duration.String(limit), duration.String(state.Limit)), "restart the plugin: it reads its configuration at the start only")
	case !state.Armed:
		d.warn(check, "", fmt.Sprintf("the outage hold is not armed: %s (%d of %s held)", state.Why, state.Held, count(state.Listed, "DEK")),
			"fill it with: hsm-kms hold seed; docs/outage.md has what keeps it from being armed")
	default:
		d.pass(check, "", fmt.Sprintf("the outage hold is armed: %s held; %s of %s used in 7 days", count(state.Held, "DEK"), duration.String(state.Used.Round(time.Second)), duration.String(limit)))
	}
}

func stamp(at time.Time) string { return at.UTC().Format(time.RFC3339) }

// AfterHold stands before the advice to restart a plugin that is on its outage hold.
const AfterHold = "wait until the outage hold is over, which a restart would end; then "

// restartLater makes all advice to restart the plugin wait: a restart would end the outage hold of this node.
func (d *doctor) restartLater() {
	for i := range d.found {
		if f := &d.found[i]; strings.Contains(f.Hint, "restart the plugin") {
			f.Hint = AfterHold + f.Hint
		}
	}
}

// ask asks the plugin for its Status. One that waits behind a refused PIN gets the time to log in after --try-pin.
func (d *doctor) ask(ctx context.Context, path string) (kmsplugin.StatusAnswer, error) {
	for deadline := time.Now().Add(recoverWait); ; {
		once, cancel := context.WithTimeout(ctx, askWait)
		answer, err := kmsplugin.StatusOf(once, path)
		cancel()
		if !d.TryPIN || err == nil && answer.Healthz == "ok" || time.Now().After(deadline) || ctx.Err() != nil {
			return answer, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// belongsHere returns why a plugin should answer on the socket; "": there is no sign of one yet.
func (d *doctor) belongsHere(socketPath string) string {
	if _, err := os.Lstat(socketPath); err == nil {
		return "its socket is there"
	}
	for _, path := range []string{"/etc/systemd/system/multi-user.target.wants/hsm-kms.service", "/etc/kubernetes/manifests/hsm-kms.yaml"} {
		// A unit with another configuration starts another plugin.
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(d.ConfigPath)) {
			return path + " starts it"
		}
	}
	const path = "/etc/kubernetes/enc/encryption.yaml" // the one that is given may be a draft
	if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte("unix://"+socketPath)) {
		return path + " has kube-apiserver call it"
	}
	return ""
}

// compare holds the plugin's current key against the ring as it was read just now.
func (d *doctor) compare(keyID, path string, ring *ringSeen) {
	const check = "plugin"
	switch {
	case ring == nil || ring.view.Current == nil:
		d.pass(check, "", fmt.Sprintf("the plugin on %s is healthy and uses %s", path, keyID))
	case ring.view.Current.ID.String() == keyID:
		d.pass(check, "", fmt.Sprintf("the plugin on %s is healthy and uses the ring's current key", path))
	case slices.ContainsFunc(ring.view.Versions, func(v envelope.Version) bool { return v.ID.String() == keyID }):
		d.warn(check, "", fmt.Sprintf("the plugin uses %s, and by this configuration %s is current", keyID, ring.view.Current.ID),
			"wait for refreshInterval and run this again; if it stays, check that the plugin runs with this configuration and clock")
	default:
		d.fail(check, "", fmt.Sprintf("the plugin uses %s, which is not on the tokens of this configuration", keyID),
			"check that the plugin runs with this configuration: its command line, and whether it was started after the last change")
	}
}

// compareRead holds the read rings of the plugin that runs against those of the configuration.
func (d *doctor) compareRead(read []health.ReadRing) {
	const check = "plugin-read-rings"
	for _, r := range d.cfg.ReadRings {
		i := slices.IndexFunc(read, func(is health.ReadRing) bool { return is.Ring == r.KeyRing })
		switch {
		case i < 0:
			d.fail(check, "", "the plugin that runs does not read the ring "+r.KeyRing, "restart the plugin: it reads its configuration at the start only")
		case read[i].Problem != nil:
			d.fail(check, "", fmt.Sprintf("the plugin cannot use the read ring %s: %v; %d of %d keys are proven", r.KeyRing, read[i].Problem, read[i].Proven, read[i].Keys),
				"do not restart kube-apiserver here while etcd holds key_ids of that ring; repair what is said of its tokens above")
		default:
			d.pass(check, "", fmt.Sprintf("the plugin reads the ring %s: %s, all proven", r.KeyRing, count(read[i].Keys, "key")))
		}
	}
}

// process says what is remarkable about the plugin's process; nothing when it is not known.
func (d *doctor) process(p *process) {
	const check = "plugin-process"
	switch {
	case p == nil:
	case p.replaced:
		d.warn(check, "", fmt.Sprintf("pid %d runs %s, which has been replaced on disk", p.pid, p.program), "restart the plugin to run what is installed")
	case p.unsafe.Path != "":
		d.fail(check, "", fmt.Sprintf("pid %d runs %s: %s", p.pid, p.program, p.unsafe.What), p.unsafe.Fix+": anyone who can change the program can read the PIN")
	case p.config != "" && !sameFile(p.config, d.ConfigPath):
		d.warn(check, "", fmt.Sprintf("pid %d runs with --config %s, and %s is looked at here", p.pid, p.config, d.ConfigPath),
			"run doctor with --config "+p.config)
	case p.changedSince(d.ConfigPath):
		d.warn(check, "", fmt.Sprintf("%s was changed after pid %d was started", d.ConfigPath, p.pid), "restart the plugin: it reads its configuration at the start only")
	default:
		d.pass(check, "", fmt.Sprintf("pid %d, %s, in %s", p.pid, p.program, cmp.Or(p.unit, "no unit")))
	}
}

// sameFile reports whether two paths lead to one file. In a pod the file is another one, at the same path.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// process is what the system knows of the plugin's process.
type process struct {
	pid      int
	program  string            // path of the program
	replaced bool              // the file at that path is another one now
	unsafe   ownedfile.Opening // how others could change the program; zero: they cannot
	config   string            // of its --config; "": the default, or not known
	unit     string            // control group: the systemd unit or the pod
	started  time.Time
}
