package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
)

// connectWait bounds the wait for all tokens.
const connectWait = 15 * time.Second

// ringSeen is the ring as this run saw it.
type ringSeen struct {
	view envelope.View
	read []string // names of the tokens that were read
}

// ring logs in to the tokens of these indices, reads the keys, and proves them. nil: no token could be read.
func (d *doctor) ring(ctx context.Context, usable []int) *ringSeen {
	asked := make([]hsm.TokenConfig, len(usable))
	for i, at := range usable {
		asked[i] = d.tokens[at]
	}
	common := d.common
	common.Log = slog.New(slog.DiscardHandler) // what it says is found below
	set := hsm.Open(common, asked)
	defer set.Start(ctx)()
	ctx, cancelWait := context.WithTimeout(ctx, connectWait)
	defer cancelWait()

	seen := &ringSeen{}
	for i, problem := range set.Connected(ctx) {
		if d.login(asked[i], problem) {
			seen.read = append(seen.read, asked[i].Name)
		}
	}
	if len(seen.read) == 0 {
		return nil
	}
	proven, _ := health.LoadProven(d.cfg.StateDir, d.cfg.KeyRing) // the check of stateDir tells of its error
	known := envelope.RingConfig{
		Name: d.common.Ring, Profile: d.common.Profile, Refuse: d.refuse, Floor: proven.Key, Grace: d.cfg.DeferGrace.Std(),
		ReadOnly: d.read != nil,
	}
	for _, token := range d.tokens {
		known.Tokens = append(known.Tokens, token.Name)
	}
	ring := envelope.NewRing(known, set)
	if err := ring.Refresh(ctx); err != nil {
		d.failure("ring", "", err, "see the vendor's log for the reason")
		return nil
	}
	exerciseErr := ring.Exercise(ctx)
	seen.view = ring.Advance()
	d.selfTest(seen, exerciseErr)
	d.cluster(ctx, set)
	return seen
}

// readRing makes the checks of tokens and keys for a ring that is only read.
func (d *doctor) readRing(ctx context.Context, name string, stateful bool) {
	of, read, err := d.cfg.ForRing(name)
	if err != nil {
		d.failure("configuration", "", err, "name a ring of readRings")
		return
	}
	sub := &doctor{Options: d.Options, cfg: of, read: read, refuse: d.refuse}
	if sub.common, sub.tokens, err = d.Tokens(of); err != nil {
		sub.failure("configuration", "", err, "correct the field that it names")
	} else if usable := sub.inspect(ctx, sub.files()); stateful && len(usable) > 0 {
		sub.ring(ctx, usable)
	}
	for _, f := range sub.found {
		f.Ring = name
		d.found = append(d.found, f)
	}
}

// login judges what a token said to the login and to the self-test that goes with it.
func (d *doctor) login(t hsm.TokenConfig, problem error) bool {
	token, accepted := t.Name, "the PIN was accepted"
	if t.Login == hsm.LoginNone {
		accepted = "the token needs no login"
	}
	switch {
	case problem == nil:
		d.pass("login", token, accepted)
		return true
	case errors.Is(problem, envelope.ErrSelfTest):
		d.pass("login", token, accepted)
		d.failure("self-test", token, problem, "do not use this token with profile "+d.cfg.Profile+": it does not encrypt as it claims; see docs/hsm-support.md and the vendor's firmware notes")
	default:
		d.failure("login", token, problem, "check that the HSM answers: the vendor's own tool and its log")
	}
	return false
}

// selfTest judges the keys, one after the other, and the ring that they make.
func (d *doctor) selfTest(seen *ringSeen, exerciseErr error) {
	served := slices.DeleteFunc(slices.Clone(seen.view.Versions), func(v envelope.Version) bool { return v.State == envelope.Refused })
	refused := d.refusedKeys(seen.view, len(served) == 0)
	switch {
	case len(served) > 0:
	case refused:
		return
	case d.read != nil && d.read.Retiring:
		d.pass("ring", "", "the ring is retiring, and has no key left: take it out of readRings on every node")
		return
	case d.read != nil:
		d.failure("ring", "", seen.view.Problem, "make the first key with: hsm-kms keys create --ring "+d.read.KeyRing+"; or copy the ring's keys to this token")
		return
	default:
		d.failure("ring", "", seen.view.Problem, "make the first key with: hsm-kms keys create; or copy the ring's keys to this token")
		return
	}
	d.attributes(served)
	clash := d.sameKeys(seen.read, served)
	if errors.Is(exerciseErr, envelope.ErrSelfTest) {
		d.failure("self-test", "", exerciseErr, "do not use this key on this token: it cannot open what it sealed")
		return
	}
	switch view := seen.view; {
	case d.read != nil && exerciseErr != nil:
		d.failure("self-test", "", exerciseErr, "see the vendor's log for the reason")
	case d.read != nil:
		d.pass("ring", "", count(len(served), "key")+"; the ring is only read, and no key of it becomes current")
		d.pass("self-test", "", "each key opens what it seals: "+strings.Join(seen.read, ", "))
	case clash && view.Problem != nil: // it follows
	case view.Problem != nil:
		problem := errors.Join(view.Problem, exerciseErr)
		if view.Current == nil && exerciseErr != nil {
			problem = exerciseErr // it begins with the view's
		}
		d.failure("ring", "", problem, ringHint(view.Problem))
	case exerciseErr != nil:
		d.failure("self-test", "", exerciseErr, "see the vendor's log for the reason")
	case view.Deferred != nil:
		d.warn("ring", "", fmt.Sprintf("%s is due, and held back: %s", view.Deferred.ID, view.Deferred.WhyHeldBack()), heldBackHint)
	case len(view.Missing()) > 0:
		d.warn("ring", "", fmt.Sprintf("the current key %s is missing, or cannot be used, on %s: it cannot take over", view.Current.ID, strings.Join(view.Missing(), ", ")),
			"copy the key to every token with the vendor's tool, or repair the token that cannot use its copy")
	case view.Current.Activation.After(time.Now()):
		d.warn("ring", "", fmt.Sprintf("the activation of every key is in the future, also that of %s", view.Current.ID), "set this machine's clock")
	default:
		d.pass("ring", "", fmt.Sprintf("%s; current is %s", count(len(served), "key"), view.Current.ID))
		d.pass("self-test", "", "nonces differ, the round trip holds, changed ciphertexts and other associated data do not open: "+strings.Join(seen.read, ", "))
	}
}

// heldBackHint is what to do about a key that waits for a token.
const heldBackHint = "copy the key to every token with the vendor's tool, and make every token reachable; remove a token that is gone for good from the configuration"

func ringHint(problem error) string {
	switch {
	case errors.Is(problem, envelope.ErrNotProven):
		return heldBackHint
	case errors.Is(problem, envelope.ErrAmbiguous):
		return envelope.ConflictHint
	case errors.Is(problem, envelope.ErrKeyMissing):
		return "restore the key to the token from its backup; if the ring was begun again on purpose, stop the plugin and remove proven.json from stateDir"
	}
	return "run hsm-kms keys list, and fix what it reports"
}
