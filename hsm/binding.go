package hsm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm/p11"
)

// A ring belongs to one cluster: what one cluster no longer needs, another may. The token says to which one, in a data
// object beside the keys, as FORMAT.md describes it.
const (
	bindingApplication = "hsm-kms"
	bindingPrefix      = "hsm-kms/cluster/1 " // then the UID
	maxBindings        = 16                   // objects that are looked at; more than one is an ambiguity anyway
)

var clusterUID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// ParseCluster checks the UID of a cluster, which is that of its namespace kube-system: a UUID. It is given back in lower
// case.
func ParseCluster(uid string) (string, error) {
	lower := strings.ToLower(uid)
	if !clusterUID.MatchString(lower) {
		return "", fmt.Errorf("%.80q is not the UID of a cluster: it is that of the namespace kube-system, 8-4-4-4-12 hexadecimal digits", uid)
	}
	return lower, nil
}

// Binding is what one token says of the cluster that the ring belongs to.
type Binding struct {
	Token   string
	Cluster string // its UID; empty: the token says nothing
	Err     error  // what it says cannot be read or is not clear: ErrAmbiguous; or the token cannot be read: ErrUnavailable
}

// Bindings reads the binding from every token, in the order of the configuration.
func (s *Set) Bindings(ctx context.Context) []Binding {
	all := make([]Binding, len(s.tokens))
	for i, t := range s.tokens {
		all[i].Token = t.cfg.Name
		all[i].Cluster, all[i].Err = t.binding(ctx)
	}
	return all
}

// ClusterOf is the cluster that the tokens agree on; "" means that none says anything. A token that says nothing does not
// contradict another. The error is that of the first token that could not be read or is not clear, or ErrAmbiguous when
// two name different clusters.
func ClusterOf(all []Binding) (uid string, err error) {
	by := ""
	for _, b := range all {
		switch {
		case b.Err != nil:
			return "", b.Err
		case b.Cluster == "" || b.Cluster == uid:
		case uid != "":
			return "", fmt.Errorf("%w: token %s binds the ring to the cluster %s, and token %s to %s", envelope.ErrAmbiguous, by, uid, b.Token, b.Cluster)
		default:
			uid, by = b.Cluster, b.Token
		}
	}
	return uid, nil
}

// binding reads the binding on a session of its own. A worker that is replaced ends under the reading, which is then made in
// the next one.
func (t *Token) binding(ctx context.Context) (uid string, err error) {
	uid, err = t.bindingOnce(ctx)
	if !errors.Is(err, p11.ErrEnded) {
		return uid, err
	}
	if _, err := t.ready(ctx); err != nil {
		return "", err
	}
	return t.bindingOnce(ctx)
}

func (t *Token) bindingOnce(ctx context.Context) (uid string, err error) {
	result := make(chan Binding, 1)
	err = t.onOwnSession(ctx, "reading the binding", false, func(api p11.API, gen *generation, s *p11.Session) error {
		uid, err := t.readBinding(api, *s)
		if err != nil && !errors.Is(err, envelope.ErrAmbiguous) {
			return err
		}
		result <- Binding{Cluster: uid, Err: err}
		return stillLoggedIn(api, *s, gen)
	})
	if err == nil {
		is := <-result
		uid, err = is.Cluster, is.Err
	}
	if err != nil {
		return "", fmt.Errorf("token %s: reading the binding of the ring: %w", t.cfg.Name, asUnavailable(err))
	}
	return uid, nil
}

func (t *Token) readBinding(api p11.API, s p11.Session) (uid string, err error) {
	objects, err := api.FindData(s, bindingApplication, t.common.Ring, maxBindings)
	if err != nil {
		return "", err
	}
	for _, object := range objects {
		bound, err := bindingOf(api, s, object)
		switch {
		case err != nil:
			return "", err
		case uid != "" && bound != uid:
			return "", fmt.Errorf("%w: the ring is bound to the clusters %s and %s", envelope.ErrAmbiguous, uid, bound)
		}
		uid = bound
	}
	return uid, nil
}

// bindingOf reads one object. Anyone who can log in can write such an object: it says nothing unless it is just as ours are.
func bindingOf(api p11.API, s p11.Session, object p11.Object) (uid string, err error) {
	private, err := api.Attribute(s, object, pkcs11.CKA_PRIVATE)
	if err != nil {
		return "", err
	}
	if len(private) != 1 || private[0] == 0 {
		return "", fmt.Errorf("%w: the object that binds the ring is not CKA_PRIVATE: anyone who reaches the token without login could have planted it", envelope.ErrAmbiguous)
	}
	value, err := api.Attribute(s, object, pkcs11.CKA_VALUE)
	if err != nil {
		return "", err
	}
	uid, ok := strings.CutPrefix(string(value), bindingPrefix)
	if !ok || !clusterUID.MatchString(uid) {
		return "", fmt.Errorf("%w: the object that binds the ring says %.80q, which this version does not understand", envelope.ErrAmbiguous, value)
	}
	return uid, nil
}

// Bound is what became of a binding on one token.
type Bound struct {
	Token   string
	Outcome Outcome // Made (also where it was there before), NotMade or Unknown
	Err     error   // nil if it is Made
}

// ErrOtherCluster: the ring is bound to another cluster, and stays so.
var ErrOtherCluster = errors.New("the ring belongs to another cluster")

// Bind binds the ring to a cluster on every token that says nothing yet. An existing binding is never changed: when a
// token names another cluster (ErrOtherCluster), or cannot be read, nothing is done on any. A token that refuses data
// objects is no error: it stays as it was, and its Bound says why.
func (s *Set) Bind(ctx context.Context, uid string) ([]Bound, error) {
	uid, err := ParseCluster(uid)
	if err != nil {
		return nil, err
	}
	before := s.Bindings(ctx)
	switch is, err := ClusterOf(before); {
	case err != nil:
		return nil, err
	case is != "" && is != uid:
		return nil, fmt.Errorf("%w: %s", ErrOtherCluster, is)
	}
	all := make([]Bound, len(s.tokens))
	for i, t := range s.tokens {
		all[i] = Bound{Token: t.cfg.Name, Outcome: Made}
		if before[i].Cluster == "" {
			all[i].Outcome, all[i].Err = t.bind(ctx, uid)
		}
	}
	return all, nil
}

// bind makes the object and looks for it.
func (t *Token) bind(ctx context.Context, uid string) (Outcome, error) {
	right := &claim{}
	var in workerProcess
	var refused error
	err := t.onOwnSession(ctx, "binding the ring", true, func(api p11.API, gen *generation, s *p11.Session) error {
		in = gen.worker
		refused = right.do(func() error {
			return api.CreateData(*s, bindingApplication, t.common.Ring, []byte(bindingPrefix+uid))
		})
		return nil // a token that refuses data objects is sound all the same
	})
	err = errors.Join(err, refused)
	if !right.abandon() {
		return NotMade, err
	}
	done, lookErr := t.settle(right, in, func(ctx context.Context) (bool, error) {
		is, err := t.binding(ctx)
		return is == uid, err
	})
	switch {
	case lookErr != nil:
		return Unknown, errors.Join(err, lookErr)
	case done:
		return Made, nil
	case err == nil:
		err = errors.New("the token reports the object made, and does not hold it")
	}
	return NotMade, err
}
