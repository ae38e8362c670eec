package migrate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ErrNames: the resources cannot be what was asked for.
var ErrNames = errors.New("these resources cannot be migrated")

// checkNames asks an API server whether there is such a resource, for each that is named, and holds them against the
// EncryptionConfiguration. A name that nobody knows would select nothing, and look like a migration that is through.
func (o *Options) checkNames(ctx context.Context) error {
	for _, entry := range o.Resources {
		if stored.IsWildcard(entry) {
			continue
		}
		if err := o.writesUnderKMS(entry); err != nil {
			return err
		}
		err := o.anyServer(ctx, o.serversOf(entry), func(s Server) error { return s.Serves(ctx, entry) })
		if err != nil {
			return hint.Wrap(fmt.Errorf("--resources: %w", err), hint.Of(err))
		}
	}
	return nil
}

// writesUnderKMS refuses a resource that the EncryptionConfiguration does not put under a key of a KMS v2 provider.
func (o *Options) writesUnderKMS(resource string) error {
	if o.Expected == nil {
		return nil
	}
	if writes := o.Expected.Writes(resource); !strings.HasPrefix(writes, string(stored.KMSv2)+":") {
		err := fmt.Errorf("%w: the EncryptionConfiguration has %s for %s, which puts nothing under a key of the HSM", ErrNames, o.expected(resource), resource)
		return hint.Wrap(err, "give the file that the API servers read now; docs/migration.md has its form")
	}
	return nil
}

// attribute finds out which resources other API servers keep: kube-apiserver passes requests for them on to one of several,
// so that no answer says which of them it was.
func (o *Options) attribute(ctx context.Context, resources []*surveyed) error {
	for _, r := range resources {
		if !strings.HasPrefix(r.Resource.Resource, "/") {
			if err := o.writesUnderKMS(r.Resource.Resource); err != nil {
				return err
			}
		}
		if stored.IsBuiltIn(r.group()) || strings.HasPrefix(r.Resource.Resource, "/") {
			continue
		}
		err := o.anyServer(ctx, o.Servers, func(s Server) (err error) {
			r.behind, err = s.Behind(ctx, r.group())
			return err
		})
		if err != nil {
			return fmt.Errorf("finding out who keeps %s: %w", r.Resource.Resource, err)
		}
	}
	return nil
}

// serversOf are the API servers that write a resource.
func (o *Options) serversOf(resource string) []Server {
	if servers := o.Groups[groupOf(resource)]; len(servers) > 0 {
		return servers
	}
	return o.Servers
}

// anyServer asks the first server that answers. While none does it tries again, for as long as a proof would be waited for.
func (o *Options) anyServer(ctx context.Context, servers []Server, ask func(Server) error) error {
	deadline := time.Now().Add(o.Wait)
	for look := lookFirst; ; look = min(lookMost, 2*look) {
		var err error
		for _, server := range servers {
			err = ask(server)
			if !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrPassing) {
				return err
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			return hint.Wrap(err, "check that the API servers answer from here")
		}
		if look == lookFirst {
			o.Say(fmt.Sprintf("waiting up to %s: %v", left.Round(time.Second), err))
		}
		if err := pause(ctx, min(look, left)); err != nil {
			return err
		}
	}
}
