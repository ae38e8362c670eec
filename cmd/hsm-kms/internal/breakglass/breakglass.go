// Package breakglass recovers one object from etcd or a snapshot with the HSM and without an API server, and puts that on
// record before anybody sees it. It depends on app for the tokens, retire and kmsplugin/audit for the trail,
// evidence, which finds and decrypts the object, evidence/manifest, envelope, envelope/stored, kmsplugin/problem and hint. It
// runs in one goroutine.
package breakglass

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/manifest"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// Request is what is to be recovered, and why.
type Request struct {
	Key    string // in etcd
	Reason string // in words for the auditor
	Form   string // yaml, json, or raw: the bytes as the API server serialised them
	// Open opens what is read; the caller closes it.
	Open func(context.Context) (sources []evidence.Source, closeAll func() error, err error)
}

// Recover finds and decrypts the object. Whatever came of it is on record when this returns. The caller clears the text.
func Recover(ctx context.Context, a *app.Context, r Request) (text []byte, err error) {
	if a.Config.Audit.Path == "" {
		return nil, app.Finding(hint.Wrap(errors.New("audit.path is empty in the configuration, and without a record nothing is recovered"), "set audit.path"))
	}
	sources, closeAll, err := r.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	trail, err := app.OpenTrailBeside(a.Config, "etcd-get")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, trail.Close()) }()
	began := time.Now()
	located, object, err := locate(ctx, sources, r.Key)
	if err == nil {
		text, err = decrypted(ctx, a, r.Form, located, object)
	}
	record := audit.Record{
		Time: began, Operation: "etcd.get", Code: codeOf(err).String(), Duration: time.Since(began), Object: r.Key,
		Reason: r.Reason + " (by " + app.UserName() + ")", Peer: app.Ourselves(),
	}
	if located != nil {
		record.KeyID = located.KeyID
	}
	if recordErr := trail.Record(ctx, record); recordErr != nil {
		clear(text)
		return nil, errors.Join(fmt.Errorf("nothing is shown: %w", recordErr), err)
	}
	return text, err
}

// errSeveral: which of the objects the API server has is not known.
var errSeveral = errors.New("more than one of these etcds has it, and only one of them is where the API server keeps it")

// locate finds the object in the one source that has it.
func locate(ctx context.Context, sources []evidence.Source, key string) (found *evidence.Recovered, object *stored.Object, err error) {
	var missing error
	for _, source := range sources {
		one, encrypted, err := evidence.Locate(ctx, source, key)
		switch {
		case errors.Is(err, evidence.ErrNotFound):
			missing = err
		case found != nil && (err == nil || isRefusal(err)):
			return nil, nil, app.Finding(hint.Wrap(fmt.Errorf("%s: %w", evidence.Printable(key), errSeveral), "name the one that --etcd-servers-overrides has for this resource with --endpoints, and nothing else"))
		case err != nil:
			return one, encrypted, refusal(err)
		default:
			found, object = one, encrypted
		}
	}
	if found == nil {
		return nil, nil, refusal(missing)
	}
	return found, object, nil
}

// refusal tells the answers of a command that could run from those of one that could not.
func refusal(err error) error {
	switch {
	case errors.Is(err, evidence.ErrNotFound):
		return app.Finding(hint.Wrap(err, "give the key as it is in etcd: /registry/RESOURCE/NAMESPACE/NAME, of a custom resource /registry/GROUP/RESOURCE/NAMESPACE/NAME"))
	case isRefusal(err):
		return app.Finding(err)
	}
	return err
}

// isRefusal reports whether an error is about an object that was found.
func isRefusal(err error) bool {
	return errors.Is(err, evidence.ErrOtherProvider) || errors.Is(err, stored.ErrUndecodable) || errors.Is(err, manifest.ErrUnknown)
}

// decrypted asks the HSM and gives the object the form that was asked for.
func decrypted(ctx context.Context, a *app.Context, form string, located *evidence.Recovered, object *stored.Object) ([]byte, error) {
	if object != nil {
		if id, _, err := envelope.ParseUsedKeyID(located.KeyID); err == nil && slices.Contains(a.File.RingNames(), id.Ring) {
			if a, err = a.ForRing(id.Ring); err != nil {
				return nil, err
			}
		}
		in, err := a.Connect(ctx)
		if err != nil {
			return nil, err
		}
		defer in.Stop()
		err = evidence.Recover(ctx, retire.Remembering(in.Ring, a.Config.Audit.Path), located, object)
		if errors.Is(err, envelope.ErrUnavailable) || envelope.IsPIN(err) {
			return nil, err // the HSM could not be asked: nothing was found out
		}
		if err != nil {
			return nil, app.Finding(err)
		}
	}
	if form == "raw" {
		return located.Plain, nil
	}
	defer clear(located.Plain)
	text, err := manifest.YAML(located.Plain)
	if err == nil && form == "json" {
		text, err = yaml.YAMLToJSON(text)
	}
	if err != nil {
		return nil, hint.Wrap(refusal(err), "-o raw writes its bytes")
	}
	return text, nil
}

// codeOf is what the audit trail says of the outcome.
func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, evidence.ErrNotFound):
		return codes.NotFound
	case isRefusal(err), errors.Is(err, errSeveral):
		return codes.FailedPrecondition
	}
	return problem.Of(err).Code
}
