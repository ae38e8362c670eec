package conformance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ringPrefix begins the label of every key that a run makes.
const ringPrefix = "hsm-kms-conformance-"

// cleanUpTime is how long the end of a run may take for what it made, whatever ended it.
const cleanUpTime = time.Minute

// Options are what the user chose.
type Options struct {
	At      int    // which token of the configuration
	Program string // version and commit of hsm-kms
	// Ring is the label of keys that somebody made for this; "": the run makes its own, and destroys them.
	Ring string
	// Label gets the label of the keys before the first one is made: a run that is killed leaves them. It is not called with Ring.
	Label func(label string)
	// Progress hears of each check when it is done.
	Progress func(Check)
}

// Run holds the token against the suite. The report is nil if and only if the token could not be looked at at all, or ctx ended
// and nothing is left; otherwise the error is nil, and what went wrong is in the report.
func Run(ctx context.Context, a *app.Context, o Options) (*Report, error) {
	if slices.Contains(a.File.RingNames(), o.Ring) {
		return nil, hint.Wrap(fmt.Errorf("--ring is %s, which is a ring that the plugin serves", o.Ring), "name the label of keys that were made for this test alone")
	}
	common, tokens, err := a.HSM()
	if err != nil {
		return nil, err
	}
	r := &run{a: a, o: o, token: tokens[o.At], common: common, calls: &counter{calls: map[string]*seen{}}, report: &Report{Format: 1, Checks: []Check{}, Left: []string{}}}
	r.common.Observer = r.calls
	if r.common.Ring = o.Ring; o.Ring == "" {
		var random [6]byte
		_, _ = rand.Read(random[:])
		r.common.Ring = ringPrefix + hex.EncodeToString(random[:])
	}
	if err := r.describe(ctx); err != nil {
		return nil, err
	}
	if o.Ring == "" {
		o.Label(r.common.Ring)
	}
	r.checks(ctx)
	r.cleanUp(ctx)
	if ctx.Err() != nil && len(r.report.Left) == 0 {
		return nil, hint.Wrap(fmt.Errorf("the test was interrupted, and says nothing about the token; nothing is left on it: %w", context.Cause(ctx)), "run it again")
	}
	r.report.Calls, r.report.Conforms = r.calls.rows(), r.report.conforms()
	return r.report, nil
}

// run is one run.
type run struct {
	a      *app.Context
	o      Options
	common hsm.Config
	token  hsm.TokenConfig
	calls  *counter
	report *Report

	made [][]byte // the CKA_IDs of keys that this run made, or may have made
	in   *app.Tokens
	id   envelope.KeyID // the current key
}

// describe says what is tested. It logs in to nothing.
func (r *run) describe(ctx context.Context) error {
	sum, err := digest(r.token.Module)
	if err != nil {
		return err
	}
	seen := hsm.Inspect(ctx, r.common, []hsm.TokenConfig{r.token})[0]
	if seen.Err != nil {
		return seen.Err
	}
	rep := r.report
	rep.Program, rep.Date = r.o.Program, time.Now().UTC().Format(time.DateOnly)
	rep.Module, rep.ModuleSHA256 = filepath.Base(r.token.Module), sum
	rep.Manufacturer, rep.Model, rep.Firmware = seen.Manufacturer, seen.Model, seen.Firmware
	rep.Profile = r.common.Profile.String()
	rep.Settings = fmt.Sprintf("maxSessions %d, callTimeout %s, ivAppended %t, initArgs %t, keys made by %s", r.token.MaxSessions, r.token.CallTimeout,
		r.token.IVAppended, r.token.Reserved != "", map[bool]string{true: "hsm-kms", false: "another program"}[r.o.Ring == ""])
	return nil
}

// digest is the SHA-256 of the module.
func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("reading the module: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", fmt.Errorf("reading the module: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// errSkipped says that a check was left out; its text says why.
type errSkipped string

func (e errSkipped) Error() string { return string(e) }

// check does one check and notes what came of it. It reports whether the check did not fail.
func (r *run) check(ctx context.Context, name string, do func(context.Context) (detail string, err error)) bool {
	begin := time.Now()
	c := Check{Name: name, Result: Passed}
	detail, err := "", context.Cause(ctx)
	if err == nil {
		detail, err = do(ctx)
	}
	c.Detail, c.TookMS = detail, time.Since(begin).Milliseconds()
	var skipped errSkipped
	switch {
	case errors.As(err, &skipped):
		c.Result, c.Detail = Skipped, skipped.Error()
	case err != nil:
		c.Result, c.Detail = Failed, err.Error()
	}
	r.report.Checks = append(r.report.Checks, c)
	r.o.Progress(c)
	return c.Result != Failed
}

// makeKey makes a key of the run's own ring, in a process of its own as `keys create` does.
func (r *run) makeKey(ctx context.Context, activation time.Time) ([]byte, error) {
	if r.o.Ring != "" {
		return nil, errSkipped("the keys were made by another program")
	}
	id, err := envelope.NewCKAID(activation)
	if err != nil {
		return nil, err
	}
	made, err := hsm.Generate(r.a.Acting(ctx), r.common, r.token, id)
	if made.Outcome != hsm.NotMade {
		r.made = append(r.made, id)
	}
	switch {
	case err != nil:
		return id, err
	case made.Key.Refused != "":
		return id, fmt.Errorf("the key that it makes is not fit to be served: %s", made.Key.Refused)
	}
	return id, nil
}

// connect opens the token as the plugin does.
func (r *run) connect(ctx context.Context) (err error) {
	r.calls.connecting()
	r.in, err = app.Connect(ctx, r.common, []hsm.TokenConfig{r.token}, envelope.RingConfig{})
	if err != nil {
		return err
	}
	if err := errors.Join(r.in.Problems...); err != nil {
		return err
	}
	return r.current(ctx)
}

// current proves the newest key of the ring and takes it for what follows.
func (r *run) current(ctx context.Context) error {
	if err := r.in.Ring.Exercise(ctx); err != nil {
		return err
	}
	view := r.in.Ring.Advance()
	if view.Current == nil {
		return errors.Join(errors.New("the ring has no key that can be used"), view.Problem)
	}
	r.id = view.Current.ID
	return nil
}

// disconnect ends the connection, if there is one.
func (r *run) disconnect() {
	if r.in != nil {
		r.in.Stop()
		r.in = nil
	}
}

// cleanUp destroys what the run made, also after a signal, and notes what may be left.
func (r *run) cleanUp(ctx context.Context) {
	defer r.disconnect()
	if len(r.made) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	r.disconnect() // a process of the module that reads its keys once may not show what was made since
	in, err := app.Connect(ctx, r.common, []hsm.TokenConfig{r.token}, envelope.RingConfig{})
	if err != nil {
		r.leave(r.made...)
		return
	}
	r.in = in
	r.check(ctx, "every key that was made is destroyed again", func(ctx context.Context) (string, error) {
		var failed []error
		for _, id := range r.made {
			if err := r.destroy(ctx, id); err != nil {
				failed = append(failed, err)
				r.leave(id)
			}
		}
		return fmt.Sprintf("%d", len(r.made)-len(failed)), errors.Join(failed...)
	})
}

func (r *run) leave(ids ...[]byte) {
	for _, id := range ids {
		r.report.Left = append(r.report.Left, fmt.Sprintf("label %s, CKA_ID %s", r.common.Ring, id))
	}
}

// destroy destroys the key with that CKA_ID, which this run made. One that is not there is destroyed already.
func (r *run) destroy(ctx context.Context, ckaID []byte) error {
	if err := r.in.Ring.Refresh(ctx); err != nil {
		return err
	}
	for _, v := range r.in.Ring.Advance().Versions {
		if string(v.CKAID) != string(ckaID) {
			continue
		}
		if v.Refused != "" {
			return fmt.Errorf("the key %s cannot be used, and so is not destroyed: %s", ckaID, v.Refused)
		}
		_, err := r.in.Set.Destroy(ctx, v.ID)
		return err
	}
	return nil
}
