package keyops

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// whoseRing is how to find out which cluster uses a ring.
const whoseRing = "find out whose it is: hsm-kms keys list names the cluster that the ring is bound to, and kubectl get namespace kube-system -o jsonpath='{.metadata.uid}' names yours; each cluster needs a keyRing of its own"

// Bound is what became of a binding. Fields and names are a contract.
type Bound struct {
	Ring     string    `json:"ring"`
	Cluster  string    `json:"cluster"`
	Outcomes []BoundOn `json:"outcomes"`
}

// BoundOn is what became of it on one token.
type BoundOn struct {
	Token   string `json:"token"`
	Outcome string `json:"outcome"` // bound, unbound or unknown
}

// Tokens are those on which the binding is written.
func (b Bound) Tokens() (tokens []string) {
	for _, o := range b.Outcomes {
		if o.Outcome == "bound" {
			tokens = append(tokens, o.Token)
		}
	}
	return tokens
}

// Bind writes on every token that takes it which cluster the ring belongs to. Without outcomes nothing was begun.
func Bind(ctx context.Context, a *app.Context, uid string) (Bound, error) {
	unlock, err := lockToMake(a)
	if err != nil {
		return Bound{}, err
	}
	defer unlock()
	in, err := a.Connect(ctx)
	if err != nil {
		return Bound{}, err
	}
	defer in.Stop()
	ring := a.Config.KeyRing
	if len(in.Ring.Advance().Versions) == 0 {
		return Bound{}, app.Finding(hint.Wrap(fmt.Errorf("the ring %s is empty", ring), "make the first key and bind the ring with: hsm-kms keys create --cluster "+uid))
	}
	bound, err := bind(ctx, a, in, uid)
	if bound.Outcomes != nil && len(bound.Tokens()) == 0 && err == nil {
		err = app.Finding(hint.Wrap(fmt.Errorf("the ring %s is bound to no cluster: no token accepts the binding", ring), "without it, keys retire asks for --sole-cluster: see docs/rotation.md"))
	}
	return bound, err
}

// bind writes the binding. A token that refuses it is a warning. Without outcomes nothing was begun.
func bind(ctx context.Context, a *app.Context, in *app.Tokens, uid string) (Bound, error) {
	ring := a.Config.KeyRing
	bound := Bound{Ring: ring, Cluster: uid}
	all, err := in.Set.Bind(a.Acting(ctx), uid)
	if errors.Is(err, hsm.ErrOtherCluster) || errors.Is(err, envelope.ErrAmbiguous) {
		return bound, app.Finding(hint.Wrap(fmt.Errorf("binding the ring %s: %w", ring, err), whoseRing))
	}
	if err != nil {
		return bound, fmt.Errorf("binding the ring %s: %w", ring, err)
	}
	for _, b := range all {
		outcome := map[hsm.Outcome]string{hsm.Made: "bound", hsm.NotMade: "unbound", hsm.Unknown: "unknown"}[b.Outcome]
		bound.Outcomes = append(bound.Outcomes, BoundOn{b.Token, outcome})
		switch b.Outcome {
		case hsm.Unknown:
			err = errors.Join(err, hint.Wrap(fmt.Errorf("it is unknown whether the token %s binds the ring now: %w", b.Token, b.Err), "when the HSM answers again, run: hsm-kms keys list"))
		case hsm.NotMade:
			a.Warn(fmt.Errorf("the token %s does not accept the binding of the ring to its cluster: %w", b.Token, b.Err))
		}
	}
	return bound, err
}

// clusterOf is the cluster that the ring belongs to, by the tokens that can be read; empty: none says it.
func clusterOf(ctx context.Context, in *app.Tokens) (string, error) {
	read := slices.DeleteFunc(in.Set.Bindings(ctx), func(b hsm.Binding) bool { return b.Err != nil && !errors.Is(b.Err, envelope.ErrAmbiguous) })
	uid, err := hsm.ClusterOf(read)
	if err != nil {
		return "", app.Finding(hint.Wrap(fmt.Errorf("it is not clear which cluster the ring belongs to: %w", err), whoseRing))
	}
	return uid, nil
}
