package retire

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Grounds are what the plan was judged by, for the record.
type Grounds struct {
	Settle    time.Duration
	Evidence  *gate.File
	Etcd      *evidence.Report
	Snapshots []*evidence.Report
}

// Destroyer destroys a key on every token that holds it, as hsm.Set does.
type Destroyer interface {
	Destroy(ctx context.Context, id envelope.KeyID) ([]hsm.Destruction, error)
}

// Outcome is what became of the key on one token. Field names and values are a contract.
type Outcome struct {
	Token   string `json:"token"`
	Outcome string `json:"outcome"` // destroyed, kept or unknown
}

// Execute does what the plan says, with records on the disk before and after. It returns what became of the key on each
// token of the plan, after an error too. What it does not know it calls unknown: never kept.
func (p *Plan) Execute(ctx context.Context, tokens Destroyer, trail Trail, g Grounds) ([]Outcome, error) {
	if len(p.Refusals) > 0 || !p.Whole {
		return nil, errors.New("a plan with refusals is not carried out")
	}
	if err := trail.write(p, func(record recorder) error { return p.begin(record, g) }); err != nil {
		return p.kept(), fmt.Errorf("nothing was destroyed: %w", err)
	}
	done, err := p.destroy(ctx, tokens)
	outcomes := []Outcome{} // a token that is not among them was found not to hold the key any more
	for _, d := range done {
		outcomes = append(outcomes, Outcome{d.Token, string(d.Outcome)})
	}
	err = explain(p.KeyID, outcomes, err)
	trailErr := trail.write(p, func(record recorder) error {
		return record(opEnd, endCode(outcomes, err), strings.Join(With(outcomes, hsm.Destroyed), ","), "; "+inWords(outcomes))
	})
	if trailErr != nil {
		trailErr = hint.Wrap(fmt.Errorf("recording the end of the destruction of %s (%s): %w", p.KeyID, inWords(outcomes), trailErr),
			"fix what keeps the audit trail from being written, and run the same command again: it completes the record")
	}
	return outcomes, errors.Join(err, trailErr)
}

// destroy asks for the destruction, unless it has become too late for that: a disk that hangs may have kept the record for
// minutes, and a pending key becomes current meanwhile.
func (p *Plan) destroy(ctx context.Context, tokens Destroyer) ([]hsm.Destruction, error) {
	if p.Before.IsZero() {
		return tokens.Destroy(ctx, p.Target.ID)
	}
	if !time.Now().Before(p.Before) {
		var kept []hsm.Destruction
		for _, token := range p.Target.Tokens {
			kept = append(kept, hsm.Destruction{Token: token, Outcome: hsm.Kept})
		}
		return kept, fmt.Errorf("it becomes current at %s: a node may have sealed under it by now", p.Target.Activation.UTC().Format(time.RFC3339))
	}
	ctx, cancel := context.WithDeadline(ctx, p.Before)
	defer cancel()
	return tokens.Destroy(ctx, p.Target.ID)
}

// Complete records the end of a destruction that was interrupted after the last token, or whose outcome was unknown: the
// key is on no token any more.
func (p *Plan) Complete(trail Trail) error {
	return trail.write(p, func(record recorder) error {
		return record(opEnd, codes.OK, "", "; on no token any more; begun before, and interrupted")
	})
}

// kept are the outcomes when nothing was tried.
func (p *Plan) kept() []Outcome {
	all := []Outcome{}
	for _, token := range p.Target.Tokens {
		all = append(all, Outcome{token, string(hsm.Kept)})
	}
	return all
}

// With are the tokens with that outcome.
func With(outcomes []Outcome, outcome hsm.Outcome) []string {
	tokens := []string{}
	for _, o := range outcomes {
		if o.Outcome == string(outcome) {
			tokens = append(tokens, o.Token)
		}
	}
	return tokens
}

// inWords puts the outcomes in words.
func inWords(outcomes []Outcome) string {
	var parts []string
	for _, outcome := range []hsm.Outcome{hsm.Destroyed, hsm.Kept, hsm.Unknown} {
		if tokens := With(outcomes, outcome); len(tokens) > 0 {
			parts = append(parts, fmt.Sprintf("%s on %s", outcome, strings.Join(tokens, ", ")))
		}
	}
	return strings.Join(parts, "; ")
}

// explain makes the error of a destruction tell of every token; nil: it is destroyed on all of them.
func explain(keyID string, outcomes []Outcome, err error) error {
	if err == nil {
		return nil
	}
	advice := "run the same command again: it continues where it stopped"
	if len(With(outcomes, hsm.Unknown)) > 0 {
		advice = "run: hsm-kms keys list; then run the same command again: it continues, or records that the key is gone"
	}
	return hint.Wrap(fmt.Errorf("destroying %s (%s): %w", keyID, inWords(outcomes), err), advice)
}

// endCode is the code of the record of the end: Unknown says that nobody knows.
func endCode(outcomes []Outcome, err error) codes.Code {
	switch {
	case len(With(outcomes, hsm.Unknown)) > 0:
		return codes.Unknown
	case err != nil:
		return codes.Unavailable
	}
	return codes.OK
}
