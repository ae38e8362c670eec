package migrate

import (
	"context"
	"errors"
)

// Errors of a request to an API server. Any other one is for good: asking again gives the same answer.
var (
	// ErrGone: there is no such object (any more).
	ErrGone = errors.New("no such object")
	// ErrPassing: the API server answered that it cannot now: conflict, too many requests, an error of its own.
	ErrPassing = errors.New("the API server could not do it now")
	// ErrUnreachable: no answer came. What was asked for may have been done.
	ErrUnreachable = errors.New("no answer from the API server")
	// ErrBadAnswer: what came is not the answer of an API server: it has no end, goes round in a circle, or is something
	// else altogether. It ends the work.
	ErrBadAnswer = errors.New("not an API server's answer")
	// ErrUnknown: the API server serves no such resource.
	ErrUnknown = errors.New("no such resource")
)

// Object names an object as the API does.
type Object struct {
	Resource  string // as in an EncryptionConfiguration: secrets, widgets.example.com
	Namespace string // empty: it has none
	Name      string
}

// Server is one API server, addressed directly and not through a load balancer. It is called from many goroutines. Errors
// wrap one of those above, or are for good.
type Server interface {
	// Name is its address, for people.
	Name() string
	// Serves returns nil if it serves a resource. The error wraps ErrUnknown if it does not, with a hint that names a similar one.
	Serves(ctx context.Context, resource string) error
	// Behind returns the Service (NAMESPACE/NAME) of the API servers to which it passes on every request for a group; empty:
	// it answers itself.
	Behind(ctx context.Context, group string) (service string, err error)
	// Rewrite has the API server read the object and store it as it is. It stores it only if it does not take the stored
	// form for the one that it would write now. revision is that of the object afterwards (etcd's mod_revision).
	Rewrite(ctx context.Context, object Object) (revision int64, err error)
	// Plant creates an object without any content, marked as a canary of ours. The resource is one of Plantable.
	Plant(ctx context.Context, resource, namespace string) (planted Object, revision int64, err error)
	// Planted lists the canaries that there are in the namespace, those of other runs included.
	Planted(ctx context.Context, resource, namespace string) ([]Object, error)
	// Remove deletes a canary. One that is gone is no error.
	Remove(ctx context.Context, planted Object) error
}

// Plantable are the resources of which a canary does no harm: nobody acts on an unknown one.
func Plantable() []string { return []string{"secrets", "configmaps"} }
