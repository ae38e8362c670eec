package main

import (
	"cmp"
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/modulefile"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// connectWait is how long a command waits for the tokens: a first attempt to connect to each, and a little.
func connectWait(tokens []hsm.TokenConfig) time.Duration {
	wait := 15 * time.Second
	for _, t := range tokens {
		wait = max(wait, t.ConnectTimeout+5*time.Second)
	}
	return wait
}

// hsmConfig turns the file's fields into package hsm's.
func hsmConfig(cfg *config.Config) (hsm.Config, []hsm.TokenConfig, error) {
	profile, err := envelope.ParseProfile(cfg.Profile)
	if err != nil {
		return hsm.Config{}, nil, err
	}
	if profile == envelope.HMACKDF && fips140.Enforced() {
		return hsm.Config{}, nil, hint.Wrap(errors.New("profile hmac-kdf seals by AES-GCM with a nonce that is not random, under a key that is used once; Go refuses that with GODEBUG=fips140=only"),
			"set GODEBUG=fips140=on for hsm-kms, which uses the same FIPS module and does not enforce; docs/hsm-support.md")
	}
	common := hsm.Config{
		Ring: cfg.KeyRing, Profile: profile, AllowImportedKeys: cfg.AllowImportedKeys,
		StateDir: cfg.StateDir, Log: slog.New(slog.DiscardHandler),
	}
	var tokens []hsm.TokenConfig
	for _, t := range cfg.Tokens {
		tokens = append(tokens, hsm.TokenConfig{
			Name: t.Name, Module: t.Module, Reserved: t.InitArgs, Label: t.Label, Serial: t.Serial, Slot: t.Slot,
			PINFile: t.PINFile, MaxSessions: t.MaxSessions,
			CallTimeout: t.CallTimeout.Std(), ConnectTimeout: t.ConnectTimeout.Std(), Env: t.Env, PassEnv: t.PassEnv,
		})
	}
	return common, tokens, nil
}

// hsmConfig is that of a command that a signal may end at any moment.
func (c *command) hsmConfig(cfg *config.Config) (hsm.Config, []hsm.TokenConfig, error) {
	common, tokens, err := hsmConfig(cfg)
	common.Workers = &c.workers
	return common, tokens, err
}

// preflight checks what a restart cannot cure before anything is loaded: module files, PIN files, stateDir.
func preflight(cfg *config.Config) error {
	for _, t := range cfg.Tokens {
		if _, err := modulefile.Check(t.Module, cfg.AllowUnsafeModulePath); err != nil {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
		if _, err := pinfile.Stat(t.PINFile); err != nil && !errors.Is(err, pinfile.ErrChanging) {
			return fmt.Errorf("token %s: %w", t.Name, err)
		}
	}
	return prepareStateDir(cfg.StateDir)
}

// prepareStateDir makes the folder if it is missing. Another user who could write there, or put another folder in its place,
// could have a refused PIN tried again. A command that root runs works in a folder of the user that the plugin runs as.
func prepareStateDir(dir string) error {
	if _, err := ownedfile.MakeFolder(dir, 0o700); err != nil {
		return hint.Wrap(fmt.Errorf("making stateDir: %w", err), cmp.Or(hint.Of(err), "make "+dir+" by hand for the user that runs the plugin, or set stateDir"))
	}
	owner, err := ownedfile.FolderOwner(dir)
	if err != nil {
		return fmt.Errorf("checking stateDir: %w", err)
	}
	var trusted []uint32
	if os.Geteuid() == 0 {
		trusted = append(trusted, owner)
	}
	openings, _, err := ownedfile.Others(dir, trusted...)
	if err != nil {
		return fmt.Errorf("checking stateDir: %w", err)
	}
	if len(openings) > 0 {
		o := openings[0]
		advice := fmt.Sprintf("chmod 0700 %s, and let the plugin's user own it", dir)
		if o.Above {
			advice = o.Fix + ", or set stateDir to a folder below /var/lib"
		}
		return hint.Wrap(fmt.Errorf("checking stateDir: %s", o.What), advice)
	}
	if err := ownedfile.MayWrite(dir); err != nil {
		return hint.Wrap(fmt.Errorf("checking stateDir: %w", err), cmp.Or(hint.Of(err), "let the user that runs hsm-kms write to "+dir))
	}
	return nil
}

// tokensInUse is tokens that are kept connected for the time of a command, and the ring on them.
type tokensInUse struct {
	set      *hsm.Set
	ring     *envelope.Ring
	problems []error // by token; nil for one that can be used
	stop     func()
}

// connectAll opens every token of the configuration for a command. What the plugin on this machine last proved
// counts here too: a clock that jumped back must not make an old key look current.
func (c *command) connectAll(ctx context.Context, cfg *config.Config) (*tokensInUse, error) {
	common, tokens, err := c.hsmConfig(cfg)
	if err != nil {
		return nil, err
	}
	proven, err := health.LoadProven(cfg.StateDir, cfg.KeyRing)
	if err != nil {
		fmt.Fprintln(c.errOut, "hsm-kms: warning:", err)
	}
	refuse, err := refusedKeys(cfg)
	if err != nil {
		return nil, err
	}
	in, err := connect(ctx, common, tokens, envelope.RingConfig{Floor: proven.Key, Refuse: refuse, Grace: cfg.DeferGrace.Std()})
	if err != nil {
		return nil, err
	}
	return in, nil
}

// connect opens tokens for a command and reads the ring. It fails when no token can be used. The caller stops.
func connect(ctx context.Context, common hsm.Config, tokens []hsm.TokenConfig, known envelope.RingConfig) (*tokensInUse, error) {
	known.Name, known.Profile = common.Ring, common.Profile
	set := hsm.Open(common, tokens)
	u := &tokensInUse{set: set, ring: envelope.NewRing(known, set), stop: set.Start(ctx)}
	waitCtx, cancelWait := context.WithTimeout(ctx, connectWait(tokens))
	defer cancelWait()
	u.problems = set.Connected(waitCtx)
	if set.Generation() == 0 {
		u.stop()
		return nil, errors.Join(u.problems...)
	}
	ctx, cancelRead := context.WithTimeout(ctx, connectWait(tokens)) // its own: another token may have used the wait up
	defer cancelRead()
	if err := u.ring.Refresh(ctx); err != nil {
		u.stop()
		return nil, err
	}
	return u, nil
}
