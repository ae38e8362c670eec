package operator

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/operator/state"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/envelope/stored"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate"
	"github.com/hsm-kms/hsm-kms/evidence/migrate/kubeapi"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// do does what was decided, and notes how it went.
func (o *Operator) do(ctx context.Context, d state.Decision) {
	began, err := time.Now(), error(nil)
	switch d.Do {
	case state.Look:
		err = o.lookAtServers(ctx)
	case state.Read:
		err = o.read(ctx, d.Current)
	case state.Prove:
		err = o.prove(ctx, d.Current)
	case state.Migrate:
		err = o.migrate(ctx, d.Current)
	case state.Record:
		err = o.record(d.Keys)
	case state.Forget:
		err = o.kept.forget(d.Keys)
		o.cfg.Log.Warn("a clean reading counts no longer; it settles again", "reason", d.Reason, "keys", d.Keys)
	case state.Wait:
	}
	if ctx.Err() != nil {
		return // what was cut short says nothing
	}
	o.failed = err
	if _, found := errors.AsType[*finding](err); found {
		o.failed = nil
	}
	o.acted(d.Do, err)
	if err == nil {
		delete(o.world.Trouble, d.Do)
		o.cfg.Log.Info("done", "action", d.Do, "took", time.Since(began).Round(time.Millisecond).String())
		return
	}
	was, reason := o.world.Trouble[d.Do], words(err)
	o.world.Trouble[d.Do] = state.Trouble{
		At: time.Now(), InARow: was.InARow + 1, Reason: reason, Hint: cmp.Or(hint.Of(err), "see the log of hsm-kms operate on "+o.cfg.Node),
	}
	if was.Reason != reason {
		o.cfg.Log.Warn("not done; it is tried again", "action", d.Do, "error", err, "hint", hint.Of(err))
	}
}

// finding is an error of an action that was done: what it found is for a person to see to.
type finding struct{ error }

func (f *finding) Unwrap() error { return f.error }

// read reads all of etcd.
func (o *Operator) read(ctx context.Context, current state.Key) error {
	sources, closeAll, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = closeAll() }()
	began := time.Now()
	report, err := evidence.Build(ctx, sources, evidence.ReportOptions{Known: o.cfg.Migrate.Known, AllowEmpty: o.cfg.Migrate.AllowEmpty})
	if err != nil {
		return err
	}
	o.weigh(report, began, current)
	return nil
}

// weigh holds a reading against the current key and the clean reading of each old one.
func (o *Operator) weigh(report *evidence.Report, began time.Time, current state.Key) {
	m := &o.cfg.Migrate
	read := &state.Etcd{At: began, Key: current.ID, Under: map[string]int64{}, Against: map[string]string{}}
	for _, resource := range report.Resources {
		for _, key := range resource.Keys {
			read.Under[envelope.KeyOf(key.KeyID)] += key.Objects
		}
	}
	o.noteUses(report, read.Under)
	for key, file := range o.kept.files {
		read.Against[key] = against(o.judge(key, file, report, o.world.Settle))
	}
	held := *report
	held.RequireKey(evidence.Required{KeyID: current.ID, Resources: m.Resources, Current: true}, m.AllowEmpty)
	held.RequireRead(m.Accepted)
	if m.Expected != nil {
		m.Expected.Compare(&held, func(resource string) bool {
			return slices.ContainsFunc(m.Resources, func(entry string) bool { return stored.Matches(entry, resource) })
		})
	}
	for _, f := range held.Findings {
		read.Left += f.Objects
	}
	if len(held.Findings) > 0 {
		read.Findings = describe(held.Findings[0])
	}
	if known, _ := report.Clusters(); o.cfg.Cluster != "" && len(known) > 0 && !slices.Equal(known, []string{o.cfg.Cluster}) {
		read.Foreign = evidence.OtherCluster(o.cfg.Cluster, known)
	}
	o.report, o.world.Etcd = report, read
	o.mu.Lock()
	o.left = read.Left
	o.mu.Unlock()
}

// judge is what hsm-kms keys retire would say of etcd, but for the ring's cluster: that stands on the token, and weigh has
// compared what is known of it here.
func (o *Operator) judge(key string, file *gate.File, now *evidence.Report, settle time.Duration) []gate.Refusal {
	c := gate.Case{KeyID: key, Accepted: gate.Accepted{Unreadable: o.cfg.Migrate.Accepted, SoleCluster: true}, Settle: settle, FileName: o.kept.path(key), File: file, Own: now}
	var keys []state.Key
	for _, n := range o.world.Nodes {
		keys = append(append(keys, n.Current), n.Retained...)
	}
	at := slices.IndexFunc(keys, func(k state.Key) bool { return k.ID == key })
	for _, k := range keys {
		if k.ID == key || k.ID == "" {
			continue
		}
		c.Others = append(c.Others, k.ID)
		if at >= 0 && k.Activates.After(keys[at].Activates) && (c.Successor.IsZero() || k.Activates.Before(c.Successor)) {
			c.Successor = k.Activates
		}
	}
	return c.Judge()
}

func against(refusals []gate.Refusal) string {
	if len(refusals) == 0 {
		return ""
	}
	return refusals[0].Reason
}

// record keeps the last reading as the first clean one of the keys, if it is one.
func (o *Operator) record(keys []string) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text) // as etcd report -o json does
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(o.report); err != nil {
		return fmt.Errorf("encoding the report: %w", err)
	}
	began, err := time.Parse(time.RFC3339Nano, o.report.Time)
	if err != nil {
		return fmt.Errorf("reading the time of the report: %w", err)
	}
	if err := o.makeRoom(keys); err != nil {
		return err
	}
	for _, key := range keys {
		if refusals := o.judge(key, &gate.File{Report: o.report, Time: began}, o.report, 0); len(refusals) > 0 {
			return &finding{hint.Wrap(errors.New(refusals[0].Reason), refusals[0].Hint)}
		}
		if err := o.kept.keep(key, text.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// maxKept bounds the reports that are kept. A plugin names 16 old keys at most, and all of a ring the same.
const maxKept = 64

// makeRoom forgets the reports of keys that no node names any longer: they were retired, or a Lease was wrong. Reports are only
// recorded while every node is known and well, so none is missed because its plugin is away.
func (o *Operator) makeRoom(keys []string) error {
	named := map[string]bool{}
	for _, n := range o.world.Nodes {
		for _, key := range n.Retained {
			named[key.ID] = true
		}
	}
	var gone []string
	for key := range o.kept.files {
		if !named[key] {
			gone = append(gone, key)
		}
	}
	if err := o.kept.forget(gone); err != nil {
		return fmt.Errorf("removing the reports of keys that are gone: %w", err)
	}
	if len(o.kept.files)+len(keys) > maxKept {
		return &finding{hint.Wrap(fmt.Errorf("the nodes name more than %d old keys", maxKept), "a Lease in the namespace "+o.cfg.Migrate.Namespace+" may be false: compare the keys that each names with hsm-kms keys list; docs/operate.md#if-somebody-takes-this-identity")}
	}
	return nil
}

// options are those of a proof or a migration now.
func (o *Operator) options(ctx context.Context, current state.Key) (opts migrate.Options, closeAll func() error, err error) {
	opts = o.cfg.Migrate
	opts.RequiredKey, opts.Current, opts.Wait = current.ID, true, 0
	if opts.Prefixes, opts.Known, err = o.cfg.Etcd.Read(); err != nil {
		return opts, nil, err
	}
	for _, server := range o.servers {
		opts.Servers = append(opts.Servers, server)
	}
	if opts.Groups, err = kubeapi.ConnectGroups(ctx, o.cfg.Kube, o.servers[0], o.cfg.Groups); err != nil {
		return opts, nil, err
	}
	opts.Sources, closeAll, err = o.open(ctx)
	return opts, closeAll, err
}

// prove has every API server write, and looks in etcd what it wrote.
func (o *Operator) prove(ctx context.Context, current state.Key) error {
	opts, closeAll, err := o.options(ctx, current)
	if err != nil {
		return err
	}
	defer func() { _ = closeAll() }()
	opts.ProofOnly = true
	began := time.Now()
	o.world.Proof = nil
	out, err := migrate.Run(ctx, opts)
	if err != nil {
		return unproven(out, err)
	}
	o.world.Proof = &state.Proof{At: began, Key: current.ID, Servers: o.world.Servers.Names}
	return nil
}

// unproven names the first API server that is not proven.
func unproven(out *migrate.Outcome, err error) error {
	if out == nil || !errors.Is(err, migrate.ErrUnproven) {
		return err
	}
	for _, p := range out.Servers {
		if p.OK || p.Skipped {
			continue
		}
		advice := "see hsm-kms status and the EncryptionConfiguration on that node; docs/migration.md#what-does-each-api-server-write"
		switch {
		case p.Behind != "":
			advice = "give --group-server for each of them, or leave the resource out of --resources; docs/evidence.md#aggregated-apis"
		case p.Error != "":
			advice = "check that the API server answers, that its admission and roles let hsm-kms:operators write, and that --endpoints and --prefix are this cluster's"
		}
		return &finding{hint.Wrap(fmt.Errorf("%w: %s", migrate.ErrUnproven, migrate.Describe(p)), advice)}
	}
	return err
}

// migrate has the API servers rewrite what is left. Only the reading afterwards says what that came to.
func (o *Operator) migrate(ctx context.Context, current state.Key) error {
	if o.cfg.Engine == EngineSVM {
		o.delegate(ctx, current)
	}
	opts, closeAll, err := o.options(ctx, current)
	if err != nil {
		return err
	}
	defer func() { _ = closeAll() }()
	opts.Progress = func(_ string, done, total int64) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.left = total - done
	}
	o.world.Etcd = nil
	defer o.showProgress(ctx, state.Decision{State: state.Migrating, Current: current, Reason: "what is not under the current key is rewritten"})()
	out, err := migrate.Run(ctx, opts)
	switch {
	case err != nil:
		return unproven(out, err)
	case out.Failed > 0:
		return &finding{hint.Wrap(fmt.Errorf("%d objects could not be rewritten, the first: %s: %s", out.Failed, evidence.Printable(out.Failures[0].Key), evidence.Printable(out.Failures[0].Reason)),
			"see to that object; hsm-kms etcd migrate names all of them")}
	case !out.Clean():
		return &finding{hint.Wrap(fmt.Errorf("after the rewriting: %s", describe(out.Report.Findings[0])), "docs/evidence.md says what each finding means and what to do about it")}
	}
	return nil
}

// describe puts a finding in words.
func describe(f evidence.Finding) string {
	text := evidence.Printable(f.Problem)
	if f.Resource != "" {
		text = evidence.Printable(f.Resource) + ": " + text
	}
	if f.Objects > 0 {
		text += fmt.Sprintf(" (%d)", f.Objects)
	}
	return strings.TrimSpace(text)
}
