package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// lookBeforeRotation reads the ring from all tokens. Those that cannot be reached are warned of, or, where an emergency key
// would go without them too, must have been named.
func (c *command) lookBeforeRotation(ctx context.Context, cfg *config.Config, f *rotateFlags) (envelope.View, error) {
	in, err := c.connectAll(ctx, cfg)
	if err != nil {
		return envelope.View{}, err
	}
	defer in.stop()
	if in.problems[0] != nil {
		return envelope.View{}, fmt.Errorf("keys are made in the first token: %w", in.problems[0])
	}
	for i, problem := range in.problems {
		switch name := cfg.Tokens[i].Name; {
		case problem == nil || slices.Contains(f.without, name):
		case f.without != nil:
			return envelope.View{}, finding(hint.Wrap(fmt.Errorf("an emergency key would not wait for the token %s either, which cannot be reached: %w", name, problem),
				"make it reachable, or add: --without-token "+name))
		default:
			fmt.Fprintln(c.errOut, "hsm-kms: warning: the key must be copied to every token before it becomes current:", problem)
		}
	}
	// A failure is in the view, if it says anything about which key is current; a rotation is a way out of some.
	_ = in.ring.Exercise(ctx)
	return in.ring.View(), nil
}

// coming are the versions that are still to become current: pending ones, one that is held back, and those that are not
// served here and may be elsewhere.
func coming(view envelope.View, now time.Time) []envelope.Version {
	var versions []envelope.Version
	for _, v := range view.Versions {
		held := view.Deferred != nil && v.State != envelope.Refused && v.ID == view.Deferred.ID
		if held || v.State == envelope.Pending || v.State == envelope.Refused && v.Activation.After(now) {
			versions = append(versions, v)
		}
	}
	return versions
}

// notDue is why --if-older-than makes no key; "": it does, unless mayRotate refuses.
func notDue(view envelope.View, olderThan time.Duration, now time.Time) (string, error) {
	for _, v := range coming(view, now) {
		if v.State != envelope.Refused {
			return standingOf(view, v), nil
		}
	}
	switch {
	case view.Current == nil:
		return "", finding(fmt.Errorf("whether a rotation is due is not clear: %w", cmp.Or(view.Problem, envelope.ErrNotProven)))
	case view.Current.Activation.IsZero():
		return "", nil // made elsewhere: nobody knows its age
	}
	if age := now.Sub(view.Current.Activation); age < olderThan {
		return fmt.Sprintf("the current key %s has been active for %s, less than %s", view.Current.ID, age.Round(time.Second), olderThan), nil
	}
	return "", nil
}

// standingOf says of a version that is still to come what it waits for.
func standingOf(view envelope.View, v envelope.Version) string {
	at := v.Activation.UTC().Format(time.RFC3339)
	switch {
	case v.State == envelope.Refused:
		return fmt.Sprintf("%s is not served here (%s), and becomes current at %s where it is", nameOf(v), v.Refused, at)
	case view.Deferred != nil && view.Deferred.ID == v.ID:
		return fmt.Sprintf("%s is due, and held back: %s", v.ID, v.WhyHeldBack())
	}
	return fmt.Sprintf("%s is pending: it becomes current at %s", v.ID, at)
}

// mayRotate refuses a rotation while another is under way, and one that would not come last: the order of the ring is that
// of activation, and a key that is older than another would never become current.
func mayRotate(ring string, view envelope.View, another bool, activation, now time.Time) error {
	served := slices.DeleteFunc(slices.Clone(view.Versions), func(v envelope.Version) bool { return v.State == envelope.Refused })
	if len(served) == 0 {
		return finding(hint.Wrap(fmt.Errorf("the ring %s is empty: there is nothing to rotate", ring), "make the first key with: hsm-kms keys create"))
	}
	if under := coming(view, now); len(under) > 0 && !another {
		v := under[0]
		advice := "wait until it is current; see what it waits for with: hsm-kms keys list"
		if v.State == envelope.Pending && v.Activation.After(now) {
			advice = "wait until it is current, or withdraw it with: hsm-kms keys retire " + v.ID.String()
		}
		return finding(hint.Wrap(errors.New(standingOf(view, v)), advice+"; to make one more all the same, add: --another"))
	}
	for _, v := range served {
		if !v.Activation.Before(activation) {
			return finding(hint.Wrap(
				fmt.Errorf("%s becomes current at %s, not before the new key would (%s)", v.ID, v.Activation.UTC().Format(time.RFC3339), activation.UTC().Format(time.RFC3339)),
				"choose a longer --activate-in, or withdraw that key first: hsm-kms keys retire "+v.ID.String()))
		}
	}
	return nil
}

// madeMeanwhile are the keys on the first token that are new beside the one just made. The error names them.
func (c *command) madeMeanwhile(ctx context.Context, cfg *config.Config, before envelope.View, made envelope.Version) ([]envelope.Version, error) {
	common, tokens, err := c.hsmConfig(cfg)
	if err != nil {
		return nil, err
	}
	in, err := connect(ctx, common, tokens[:1], envelope.RingConfig{})
	if err != nil {
		return nil, finding(hint.Wrap(fmt.Errorf("%s is made; whether another was made at the same moment is not known: %w", made.ID, err), "see with: hsm-kms keys list"))
	}
	defer in.stop()
	after := in.ring.View().Versions
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
		names = append(names, nameOf(v))
	}
	return news, finding(hint.Wrap(fmt.Errorf("two rotations at one moment: this command made %s, and another made %s", made.ID, strings.Join(names, ", ")),
		"both become current, one after the other; if one is enough, withdraw this one before its activation: hsm-kms keys retire "+last.ID.String()))
}
