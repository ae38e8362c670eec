package keyops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/config"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Create makes the first key of the ring, and binds the ring to the cluster with that UID; empty: to none. The key is made,
// and returned, whatever becomes of the binding.
func Create(ctx context.Context, a *app.Context, uid string) (*Made, error) {
	if err := ringMustBeNamed(a); err != nil {
		return nil, err
	}
	unlock, err := lockToMake(a)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := ringMustBeEmpty(ctx, a, uid); err != nil {
		return nil, err
	}
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		return nil, err
	}
	made, err := makeKey(ctx, a, id)
	if err == nil && uid != "" {
		made.Bound, err = bindNewRing(ctx, a, uid)
	}
	return made, err
}

// ringMustBeNamed refuses a first key under the name that the samples have.
func ringMustBeNamed(a *app.Context) error {
	if a.Config.KeyRing != config.PlaceholderRing {
		return nil
	}
	return app.Finding(hint.Wrap(fmt.Errorf("keyRing is %s, the placeholder of the samples: clusters that share a ring share its keys", a.Config.KeyRing),
		"name the ring after its cluster, in keyRing of the configuration of every node"))
}

// bindNewRing: the key is made, and that must be said whatever becomes of the binding.
func bindNewRing(ctx context.Context, a *app.Context, uid string) (Bound, error) {
	in, err := a.Connect(ctx)
	if err == nil {
		defer in.Stop()
		bound, bindErr := bind(ctx, a, in, uid)
		if err = bindErr; err == nil {
			return bound, nil
		}
	}
	return Bound{}, hint.Wrap(fmt.Errorf("the key is made, and the ring is perhaps not bound to its cluster: %w", err), "bind it with: hsm-kms keys bind --cluster "+uid)
}

// ringMustBeEmpty looks at every token: a ring that exists on the second token only is a copy that went
// missing on the first, and a new first key would be another ring under its name. The ring must not belong to another
// cluster than uid either; empty: nobody said which one it is to belong to.
func ringMustBeEmpty(ctx context.Context, a *app.Context, uid string) error {
	in, err := a.Connect(ctx)
	if err != nil {
		return err
	}
	defer in.Stop()
	if err := errors.Join(in.Problems...); err != nil {
		return fmt.Errorf("checking whether the ring is empty: %w", err)
	}
	owner, err := clusterOf(ctx, in)
	versions := in.Ring.Advance().Versions
	switch {
	case len(versions) > 0 && owner != "":
		return app.Finding(hint.Wrap(fmt.Errorf("the ring %s has a key already: %s; it belongs to the cluster %s", a.Config.KeyRing, Name(versions[0]), owner), whoseRing))
	case len(versions) > 0:
		return app.Finding(hint.Wrap(fmt.Errorf("the ring %s has a key already: %s; another cluster may use it", a.Config.KeyRing, Name(versions[0])), whoseRing))
	case err != nil:
		return err
	case owner != "" && uid == "":
		a.Warn(fmt.Errorf("the ring %s is empty, and belongs to the cluster %s", a.Config.KeyRing, owner))
	case owner != "" && owner != uid:
		return app.Finding(hint.Wrap(fmt.Errorf("%w: %s is bound to %s", hsm.ErrOtherCluster, a.Config.KeyRing, owner), whoseRing))
	}
	return nil
}
