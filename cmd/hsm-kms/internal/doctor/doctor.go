// Package doctor holds a set-up against what hsm-kms needs, and says of each thing what is wrong and what to do. The
// command prints what it finds. A check is made only when those that it rests on passed, so that one mistake gives one finding.
//
// It depends on hsm, on hsm/guard, hsm/modulefile and hsm/pinfile, on kmsplugin, kmsplugin/health, kmsplugin/hold/holdfile and
// kmsplugin/socket, on envelope, evidence, evidence/encconfig and evidence/migrate/kubeapi, and on config, duration, hint and
// ownedfile.
//
// Nothing is changed: on a token no object is made or altered and no session is opened for writing. A login is made
// only as `serve` would make it: under the attempt guard, never when the token says that its PIN is locked or that a wrong
// one would lock it. Two things are made on this machine, as every command makes them: stateDir when it is missing, and
// the records of PIN attempts in it.
//
// A run is one goroutine; the tokens that it opens have theirs, which end with it.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// Result of a check.
type Result string

const (
	// Pass: as it should be.
	Pass Result = "pass"
	// Warn: it works, and a person should know.
	Warn Result = "warn"
	// Fail: it does not work, or is not safe.
	Fail Result = "fail"
)

// Finding is the answer of one check. Names of the fields are a contract.
type Finding struct {
	Check  string `json:"check"`           // as "module"; stable
	Ring   string `json:"ring,omitempty"`  // a read ring, when it is about one
	Token  string `json:"token,omitempty"` // its name in the configuration, when it is about one
	Result Result `json:"result"`
	Detail string `json:"detail"` // what was found
	Hint   string `json:"hint"`   // what to do; "" when there is nothing to do
}

// Options say what to look at.
type Options struct {
	ConfigPath       string
	EncryptionConfig string // path of an EncryptionConfiguration; "": none is looked at
	Step             int    // 1: it is that of the first step of a migration
	Socket           string // of a running plugin; "": the configuration's, where it is no fault if none runs
	Operate          string // kubeconfig of hsm-kms operate, which need not be there
	Ring             string // only this ring and its tokens; "": all, and everything else
	TryPIN           bool   // clear what stands against the PIN and try it once more
	// ClusterUIDs reads from etcd whose objects it holds; nil: etcd was not named.
	ClusterUIDs func(context.Context) ([]string, error)
	// Report reads what etcd holds; nil: etcd was not named.
	Report func(context.Context) (*evidence.Report, error)
	// Prepare makes or checks stateDir.
	Prepare func(cfg *config.Config) error
	// Tokens turns the configuration into package hsm's.
	Tokens func(*config.Config) (hsm.Config, []hsm.TokenConfig, error)
}

// doctor is one run.
type doctor struct {
	Options
	cfg    *config.Config
	read   *config.ReadRing // cfg is that of this read ring; nil: it is the file's own
	common hsm.Config
	tokens []hsm.TokenConfig
	refuse []envelope.KeyID // refuseKeys
	found  []Finding
}

// Run makes all checks, in the order in which a person should correct what they find. ctx ends those that wait.
func Run(ctx context.Context, options Options) []Finding {
	d := &doctor{Options: options}
	if !d.configuration() {
		return d.found
	}
	stateful := d.stateDir()
	if d.Ring != "" && d.Ring != d.cfg.KeyRing {
		d.readRing(ctx, d.Ring, stateful)
		return d.found
	}
	d.audit()
	d.owners()
	folder := d.socketFolder()
	usable := d.inspect(ctx, d.files())
	var ring *ringSeen
	if stateful && len(usable) > 0 {
		ring = d.ring(ctx, usable)
	}
	for _, r := range d.cfg.ReadRings {
		if d.Ring == "" {
			d.readRing(ctx, r.KeyRing, stateful)
		}
	}
	if len(d.tokens) == 1 && !d.cfg.BackupRehearsed {
		d.warn("backup", "", "the configuration names one token: if it and its backup are lost, every Secret is lost",
			"keep a backup of the token, restore it once as a rehearsal, and set backupRehearsed: true; or list a second token with the same keys")
	}
	if folder {
		d.plugin(ctx, ring)
	}
	d.operate(d.Operate, time.Now())
	if d.EncryptionConfig != "" {
		d.encryption(ctx)
	}
	return d.found
}

// configuration loads the file; each mistake in it is a finding of its own. It reports whether the other checks can be
// made.
func (d *doctor) configuration() bool {
	const check = "configuration"
	cfg, err := config.Load(d.ConfigPath)
	if err != nil {
		for _, one := range split(err) {
			if problem, ok := errors.AsType[*config.Problem](one); ok {
				d.fail(check, "", whereAndWhat(problem), problem.Hint)
				continue
			}
			d.failure(check, "", err, "write one: hsm-kms config example prints a sample")
		}
		return false
	}
	d.cfg = cfg
	d.common, d.tokens, err = d.Tokens(cfg)
	if err != nil {
		d.failure(check, "", err, "correct the field that it names")
		return false
	}
	for _, text := range cfg.RefuseKeys {
		id, err := envelope.ParseKeyID(text)
		if err != nil {
			d.fail(check, "", fmt.Sprintf("refuseKeys: %q: %v", text, err), "copy the key_id from: hsm-kms keys list")
			return false
		}
		d.refuse = append(d.refuse, id)
	}
	for _, warning := range cfg.Warnings() {
		advice := "leave it if it is intended; docs/configuration.md has the consequences"
		if strings.HasPrefix(warning, "keyRing is "+config.PlaceholderRing+",") {
			advice = "as long as the ring has no key, name it after its cluster on every node; a ring that is in use keeps its name, which is part of every key_id"
		}
		d.warn(check, "", warning, advice)
	}
	d.configurationFolder(check)
	reads := ""
	if len(cfg.ReadRings) > 0 {
		reads = "; only read: " + strings.Join(cfg.RingNames()[1:], ", ")
	}
	d.pass(check, "", fmt.Sprintf("%s: ring %s, profile %s, %s%s", d.ConfigPath, cfg.KeyRing, cfg.Profile, count(len(cfg.Tokens), "token"), reads))
	return true
}

// configurationFolder warns of everybody who can put another file in the configuration's place: it names the module that is
// loaded. A folder of a file system that is mounted read-only, as that of a ConfigMap in a pod, is nobody's to write.
func (d *doctor) configurationFolder(check string) {
	path, err := filepath.Abs(d.ConfigPath)
	if err != nil || errors.Is(unix.Access(filepath.Dir(path), unix.W_OK), unix.EROFS) {
		return
	}
	openings, _, err := ownedfile.Others(path)
	if err != nil {
		return // it was read a moment ago
	}
	for _, o := range openings {
		d.warn(check, "", "another file can be put in the configuration's place: "+o.What, o.Fix)
	}
}

// whereAndWhat is a mistake without its hint, which has a field of its own here.
func whereAndWhat(p *config.Problem) string {
	where := p.File
	if p.Line > 0 {
		where = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	if p.Field != "" {
		where += ": " + p.Field
	}
	return where + ": " + p.What
}

func (d *doctor) pass(check, token, detail string) {
	d.found = append(d.found, Finding{Check: check, Token: token, Result: Pass, Detail: detail})
}

func (d *doctor) warn(check, token, detail, advice string) {
	d.found = append(d.found, Finding{Check: check, Token: token, Result: Warn, Detail: detail, Hint: advice})
}

func (d *doctor) fail(check, token, detail, advice string) {
	d.found = append(d.found, Finding{Check: check, Token: token, Result: Fail, Detail: detail, Hint: advice})
}

// failure is fail with an error, whose own hint goes before otherwise.
func (d *doctor) failure(check, token string, err error, otherwise string) {
	d.fail(check, token, err.Error(), cmp.Or(hint.Of(err), otherwise))
}

// count is a number of things: 1 token, 2 tokens.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// split takes joined errors apart, through whatever wraps them alone.
func split(err error) []error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		if joined, ok := inner.(interface{ Unwrap() []error }); ok { //nolint:errorlint // the list itself is wanted
			return joined.Unwrap()
		}
	}
	return []error{err}
}
