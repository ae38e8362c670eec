package keyops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

// rotateMargin is what a rotation should leave, beyond two refresh intervals, for clocks that differ and for
// copying the key to other tokens.
const rotateMargin = time.Minute

// Rotation is what the operator asks for.
type Rotation struct {
	ActivateIn time.Duration // from now until the key becomes current
	PrintID    bool          // make no key, and return its ID
	Another    bool          // although a key is pending
	Timed      bool          // only if the current key is older than OlderThan, and none is pending
	OlderThan  time.Duration
	Without    []string // tokens for which an emergency key does not wait; nil: no emergency key
}

// Emergency reports whether the key waits for no token.
func (r Rotation) Emergency() bool { return r.Without != nil }

// Rotated is what a rotation did: one of these.
type Rotated struct {
	NotDue *NotDue
	ID     *NewID
	Made   *Made
}

// NotDue says why no key was made. Fields and names are a contract.
type NotDue struct {
	Due     bool     `json:"due"` // false
	Reason  string   `json:"reason"`
	Current string   `json:"current,omitempty"`
	Pending []string `json:"pending,omitempty"`
}

// NewID is the identity of a key that a vendor's tool is to make.
type NewID struct {
	CKAID      []byte
	Activation time.Time
}

// Rotate makes the next version of the key. Made also comes with an error, where a key was made or may have been.
func Rotate(ctx context.Context, a *app.Context, r Rotation) (Rotated, error) {
	if err := r.check(a.Config); err != nil {
		return Rotated{}, err
	}
	if err := notOnHold(ctx, a); err != nil {
		return Rotated{}, err
	}
	lock := lockToMake
	if r.PrintID {
		lock = func(a *app.Context) (func(), error) { return app.LockKeys(a.Config.StateDir) }
	}
	unlock, err := lock(a)
	if err != nil {
		return Rotated{}, err
	}
	defer unlock()
	before, err := lookBeforeRotation(ctx, a, r)
	if err != nil {
		return Rotated{}, err
	}
	now := time.Now()
	if r.Timed {
		if not, err := notDue(before, r.OlderThan, now); not != nil || err != nil {
			return Rotated{NotDue: not}, err
		}
	}
	activation := now.Add(r.ActivateIn).Truncate(time.Millisecond)
	first := r.PrintID && len(before.Versions) == 0 // a vendor's tool makes the first key too
	if first {
		err = ringMustBeNamed(a)
	} else {
		err = mayRotate(a.Config.KeyRing, before, r.Another, activation, now)
	}
	if err != nil {
		return Rotated{}, err
	}
	if least := 2*a.Config.RefreshInterval.Std() + rotateMargin; r.ActivateIn < least && !first {
		a.Warn(fmt.Errorf("%s is less than %s: a node may not have seen the key by then, and cannot read what others write under it until it has", r.ActivateIn, least))
	}
	newID := envelope.NewCKAID
	if r.Emergency() {
		newID = envelope.NewEmergencyCKAID
	}
	id, err := newID(activation)
	if err != nil {
		return Rotated{}, err
	}
	if r.PrintID {
		return Rotated{ID: &NewID{CKAID: id, Activation: activation}}, nil
	}
	made, err := makeKey(ctx, a, id)
	if err == nil {
		err = made.settle(ctx, a, before)
	}
	return Rotated{Made: made}, err
}

// notOnHold refuses a rotation while the plugin of this node answers without the HSM: it could not prove the new key.
func notOnHold(ctx context.Context, a *app.Context) error {
	path := a.Config.Socket.Path
	if a.Config.OutageHold == 0 || socket.IsAbsent(ctx, path) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, kmsplugin.StatusTimeout)
	defer cancel()
	answer, err := kmsplugin.StatusOf(ctx, path)
	if err != nil {
		return fmt.Errorf("finding out whether the plugin on this node lives on its outage hold: %w", err)
	}
	if answer.Hold != nil && answer.Hold.Holding {
		return app.Finding(hint.Wrap(errors.New("the plugin on this node lives on its outage hold: no key becomes current before it reaches the HSM again"),
			"wait until hsm-kms status shows that the hold is over"))
	}
	return nil
}

// settle finds out what the new key is in the ring: read back alone, it looks as if it were the only one. Nothing locks a
// token for the commands of several machines, so that two can pass the look before: at least the one that reads last sees both.
func (m *Made) settle(ctx context.Context, a *app.Context, before envelope.View) (err error) {
	m.State = envelope.Pending
	if !m.Activation.After(time.Now()) {
		m.State = envelope.Current
	}
	m.Meanwhile, err = madeMeanwhile(ctx, a, before, m.Version)
	return err
}

// check refuses flags that contradict each other or the configuration.
func (r Rotation) check(cfg *config.Config) error {
	switch {
	case r.ActivateIn < 0:
		return hint.Wrap(fmt.Errorf("--activate-in %s is in the past", r.ActivateIn), "0s activates at once")
	case r.OlderThan < 0:
		return hint.Wrap(fmt.Errorf("--if-older-than %s is negative", r.OlderThan), "write 90d for 90 days")
	case r.Timed && r.Another:
		return hint.Wrap(errors.New("--if-older-than and --another contradict each other: from a timer, --another would make keys without end"), "leave out one of the two")
	}
	for _, name := range r.Without {
		at := slices.IndexFunc(cfg.Tokens, func(t config.Token) bool { return t.Name == name })
		switch {
		case at < 0:
			return hint.Wrap(fmt.Errorf("--without-token %q names no token of the configuration", name), "the tokens are: "+strings.Join(cfg.TokenNames(), ", "))
		case at == 0:
			return hint.Wrap(fmt.Errorf("--without-token %s: keys are made in the first token of the configuration, and that is this one", name), "put another token first in the configuration of this machine")
		}
	}
	return nil
}

// lookBeforeRotation reads the ring from all tokens. Those that cannot be reached are warned of, or, where an emergency key
// would go without them too, must have been named.
func lookBeforeRotation(ctx context.Context, a *app.Context, r Rotation) (envelope.View, error) {
	in, err := a.Connect(ctx)
	if err != nil {
		return envelope.View{}, err
	}
	defer in.Stop()
	if in.Problems[0] != nil {
		return envelope.View{}, fmt.Errorf("keys are made in the first token: %w", in.Problems[0])
	}
	for i, problem := range in.Problems {
		switch name := a.Config.Tokens[i].Name; {
		case problem == nil || slices.Contains(r.Without, name):
		case r.Without != nil:
			return envelope.View{}, app.Finding(hint.Wrap(fmt.Errorf("an emergency key would not wait for the token %s either, which cannot be reached: %w", name, problem),
				"make it reachable, or add: --without-token "+name))
		default:
			a.Warn(fmt.Errorf("the key must be copied to every token before it becomes current: %w", problem))
		}
	}
	if view := in.Ring.Advance(); len(view.Versions) == 0 {
		if err := errors.Join(in.Problems...); err != nil { // a copy may be there: see ringMustBeEmpty
			return view, fmt.Errorf("checking whether the ring is empty: %w", err)
		}
	}
	// A failure is in the view, if it says anything about which key is current; a rotation is a way out of some.
	_ = in.Ring.Exercise(ctx)
	return in.Ring.Advance(), nil
}

// madeMeanwhile are the keys on the first token that are new beside the one just made. The error names them.
func madeMeanwhile(ctx context.Context, a *app.Context, before envelope.View, made envelope.Version) ([]envelope.Version, error) {
	common, tokens, err := a.HSM()
	if err != nil {
		return nil, err
	}
	in, err := app.Connect(ctx, common, tokens[:1], envelope.RingConfig{})
	if err != nil {
		return nil, app.Finding(hint.Wrap(fmt.Errorf("%s is made; whether another was made at the same moment is not known: %w", made.ID, err), "see with: hsm-kms keys list"))
	}
	defer in.Stop()
	after := in.Ring.Advance().Versions
	known := func(v envelope.Version) bool {
		return bytes.Equal(v.CKAID, made.CKAID) || slices.ContainsFunc(before.Versions, func(u envelope.Version) bool { return bytes.Equal(u.CKAID, v.CKAID) })
	}
	news := slices.DeleteFunc(slices.Clone(after), known)
	if len(news) == 0 {
		return nil, nil
	}
	// Both commands must advise the same, or both keys would be withdrawn: the last in the order of the ring goes.
	last := made
	for _, v := range news {
		if v.State != envelope.Refused && v.ID.Version > last.ID.Version {
			last = v
		}
	}
	var names []string
	for _, v := range news {
		names = append(names, Name(v))
	}
	return news, app.Finding(hint.Wrap(fmt.Errorf("two rotations at one moment: this command made %s, and another made %s", made.ID, strings.Join(names, ", ")),
		"both become current, one after the other; if one is enough, withdraw this one before its activation: hsm-kms keys retire "+last.ID.String()))
}
