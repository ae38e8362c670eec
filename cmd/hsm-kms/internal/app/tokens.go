package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/pinfile"
	"github.com/hsm-kms/hsm-kms/internal/hint"
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

// HSMConfig turns the file's fields into package hsm's.
func HSMConfig(cfg *config.Config) (hsm.Config, []hsm.TokenConfig, error) {
	profile, err := envelope.ParseProfile(cfg.Profile)
	if err != nil {
		return hsm.Config{}, nil, err
	}
	common := hsm.Config{
		Ring: cfg.KeyRing, Profile: profile, AllowImportedKeys: cfg.AllowImportedKeys,
		StateDir: cfg.StateDir, Log: slog.New(slog.DiscardHandler),
	}
	var tokens []hsm.TokenConfig
	for _, t := range cfg.Tokens {
		manufacturer, model := t.Maker()
		tokens = append(tokens, hsm.TokenConfig{
			Manufacturer: manufacturer, Model: model,
			Name: t.Name, Module: t.Module, Reserved: t.InitArgs, Label: t.Label, Serial: t.Serial, Slot: t.Slot,
			Login: loginOf(t.Login), PINFile: t.PINFile, PINRules: pinRules(t), MaxSessions: t.MaxSessions, IVAppended: t.IVAppended,
			CallTimeout: t.CallTimeout.Std(), ConnectTimeout: t.ConnectTimeout.Std(), Env: t.Env, PassEnv: t.PassEnv,
			Swap: hsm.Swap(t.Swap),
		})
	}
	return common, tokens, nil
}

// RingHSM is HSMConfig of one ring, as ForRing gives it. A read ring must not keep the plugin or a command from the others: what its files
// say against it is in files, and then it has no token.
func RingHSM(of *config.Config, read *config.ReadRing) (common hsm.Config, tokens []hsm.TokenConfig, files, err error) {
	common, tokens, err = HSMConfig(of)
	if err == nil && read != nil {
		if files = CheckFiles(of); files != nil {
			tokens = nil
		}
	}
	return common, tokens, files, err
}

// loginOf is a login of the configuration as package hsm knows it.
func loginOf(login string) hsm.Login {
	switch login {
	case config.LoginNone:
		return hsm.LoginNone
	case config.LoginPINPad:
		return hsm.LoginPINPad
	}
	return hsm.LoginPIN
}

func pinRules(t config.Token) pinfile.Rules {
	return pinfile.Rules{GroupReads: t.AllowGroupPIN, Empty: t.EmptyPIN}
}

// HSM is package hsm's configuration of a command that a signal may end at any moment.
func (a *Context) HSM() (hsm.Config, []hsm.TokenConfig, error) {
	common, tokens, err := HSMConfig(a.Config)
	common.Workers = &a.Workers
	return common, tokens, err
}

// Tokens are tokens that are kept connected for the time of a command, and the ring on them.
type Tokens struct {
	Set      *hsm.Set
	Ring     *envelope.Ring
	Problems []error // by token, nil for one that can be used; of a read ring whose files fail the check: that one error
	Stop     func()
}

// Known is what is known of the ring without the tokens. What the plugin on this machine last proved counts for commands
// too: a clock that jumped back must not make an old key look current.
func (a *Context) Known() (envelope.RingConfig, error) {
	proven, err := health.LoadProven(a.Config.StateDir, a.Config.KeyRing)
	if err != nil {
		a.Warn(err)
	}
	refuse, err := RefusedKeys(a.Config)
	return envelope.RingConfig{Floor: proven.Key, Refuse: refuse, Grace: a.Config.DeferGrace.Std(), ReadOnly: a.Read != nil}, err
}

// Connect opens every token of the configuration and reads the ring.
func (a *Context) Connect(ctx context.Context) (*Tokens, error) {
	common, tokens, err := a.HSM()
	if err != nil {
		return nil, err
	}
	known, err := a.Known()
	if err != nil {
		return nil, err
	}
	return Connect(ctx, common, tokens, known)
}

// Connect opens tokens for a command and reads the ring. It fails when no token can be used. The caller stops.
func Connect(ctx context.Context, common hsm.Config, tokens []hsm.TokenConfig, known envelope.RingConfig) (*Tokens, error) {
	t := open(ctx, common, tokens, known)
	if t.Set.Generation() == 0 {
		t.Stop()
		return nil, errors.Join(t.Problems...)
	}
	ctx, cancelRead := context.WithTimeout(ctx, connectWait(tokens)) // its own: another token may have used the wait up
	defer cancelRead()
	if err := t.Ring.Refresh(ctx); err != nil {
		t.Stop()
		return nil, err
	}
	return t, nil
}

// open starts to keep tokens connected, and waits for the first attempts.
func open(ctx context.Context, common hsm.Config, tokens []hsm.TokenConfig, known envelope.RingConfig) *Tokens {
	known.Name, known.Profile = common.Ring, common.Profile
	set := hsm.Open(common, tokens)
	t := &Tokens{Set: set, Ring: envelope.NewRing(known, set), Stop: set.Start(ctx)}
	ctx, cancel := context.WithTimeout(ctx, connectWait(tokens))
	defer cancel()
	t.Problems = set.Connected(ctx)
	return t
}

// ConnectAll opens the tokens of every ring of the configuration. A read ring whose files or tokens cannot be used is a
// warning, and what is opened under its keys then fails with envelope.ErrUnavailable; a mistake in its configuration is an error.
// The caller stops.
func (a *Context) ConnectAll(ctx context.Context) (rings *envelope.Rings, stop func(), err error) {
	written, err := a.Connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	stops := []func(){written.Stop}
	stop = func() {
		for _, end := range stops {
			end()
		}
	}
	var read []*envelope.Ring
	for _, name := range a.File.RingNames()[1:] {
		t, err := a.openReadRing(ctx, name)
		if err != nil {
			stop()
			return nil, nil, err
		}
		stops, read = append(stops, t.Stop), append(read, t.Ring)
		if err := errors.Join(t.Problems...); err != nil {
			a.Warn(fmt.Errorf("the read ring %s: some or all of its tokens cannot be used: %w", name, err))
		}
	}
	return envelope.NewRings(written.Ring, read...), stop, nil
}

// openReadRing opens a read ring. What its files say against it is in Problems, and then it has no token.
func (a *Context) openReadRing(ctx context.Context, name string) (*Tokens, error) {
	of := *a
	var err error
	if of.Config, of.Read, err = a.File.ForRing(name); err != nil {
		return nil, err
	}
	known, err := of.Known()
	if err != nil {
		return nil, err
	}
	common, tokens, files, err := RingHSM(of.Config, of.Read)
	if err != nil {
		return nil, err
	}
	common.Workers = &a.Workers
	t := open(ctx, common, tokens, known)
	if files != nil {
		t.Problems = []error{files}
	}
	return t, nil
}

// RefusedKeys are the keys that refuseKeys of the configuration names.
func RefusedKeys(cfg *config.Config) ([]envelope.KeyID, error) {
	var refuse []envelope.KeyID
	for _, text := range cfg.RefuseKeys {
		id, err := envelope.ParseKeyID(text)
		if err != nil {
			return nil, hint.Wrap(fmt.Errorf("reading refuseKeys: %q: %w", text, err), "copy the key_id from: hsm-kms keys list")
		}
		refuse = append(refuse, id)
	}
	return refuse, nil
}
