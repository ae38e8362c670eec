package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/retire"
	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

// retireFiles are the report and the snapshots, which are read once.
type retireFiles struct {
	evidence  *gate.File // nil: not read yet
	snapshots []*evidence.Report
}

// gather finds out what is to be known of the key. What a refusal can be made of is in the facts; an error means that it
// could not be found out.
func (r *retirement) gather(ctx context.Context) (retire.Facts, error) {
	f := retire.Facts{Problems: r.tokenProblems(ctx)}
	f.Proven, f.ProvenErr = health.LoadProven(r.cfg.StateDir, r.cfg.KeyRing) // now: somebody may have been asked meanwhile
	if len(f.Problems) > 0 {
		return f, nil
	}
	if err := r.in.Ring.Refresh(ctx); err != nil {
		return f, err
	}
	if err := r.in.Ring.Exercise(ctx); err != nil && !errors.Is(err, envelope.ErrAmbiguous) {
		return f, fmt.Errorf("finding out which key is current: %w", err)
	}
	f.Now, f.View = time.Now(), r.in.Ring.View()
	f.Cluster, f.ClusterErr = hsm.ClusterOf(r.in.Set.Bindings(ctx))
	serials := r.in.Set.Serials()
	for _, token := range r.in.Set.Members() {
		f.Tokens = append(f.Tokens, retire.Token{Name: token.Name(), Serial: serials[token.Name()]})
	}
	switch retire.TargetState(f.View, r.request.KeyID) {
	case "":
		known, err := retire.Destructions(r.cfg.Audit.Path)
		f.Destruction, f.DestructionErr = known[r.request.KeyID.String()], err
		return f, nil
	case envelope.Retained:
		f.Plugin = r.askPlugin(ctx)
		return f, r.gatherEvidence(ctx, &f)
	case envelope.Pending:
		f.Used, f.UsedErr = audit.FindKey(r.cfg.Audit.Path, r.request.KeyID.String())
		if !r.flags.noEtcd {
			f.Etcd, f.EtcdErr = r.report(ctx, &r.flags.etcdFlags)
			f.Now, f.View = time.Now(), r.in.Ring.View() // reading may have taken minutes
		}
	}
	f.Plugin = r.askPlugin(ctx)
	return f, ctx.Err()
}

// tokenProblems reads every token: the ring is content with those that can be read, and keeps what it knows of the others.
func (r *retirement) tokenProblems(ctx context.Context) []error {
	problems := slices.DeleteFunc(slices.Clone(r.in.Problems), func(err error) bool { return err == nil })
	if len(problems) > 0 {
		return problems
	}
	for _, token := range r.in.Set.Members() {
		if _, err := token.Keys(ctx); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

// gatherEvidence reads what was named, and etcd.
func (r *retirement) gatherEvidence(ctx context.Context, f *retire.Facts) error {
	if r.flags.evidence == "" {
		return nil
	}
	if r.files.evidence == nil {
		file, err := gate.Load(r.flags.evidence)
		if errors.Is(err, gate.ErrNotEvidence) {
			f.NotEvidence = err
			return nil
		}
		if err != nil {
			return hint.Wrap(err, "give the file that this wrote: hsm-kms etcd report -o json > report.json")
		}
		for _, path := range r.flags.named {
			report, err := r.report(ctx, &etcdFlags{snapshots: []string{path}, prefixes: r.flags.prefixes})
			if err != nil {
				return err
			}
			r.files.snapshots = append(r.files.snapshots, report)
		}
		r.files.evidence = file
	}
	f.Evidence, f.Snapshots = r.files.evidence, r.files.snapshots
	var err error
	f.Etcd, err = r.report(ctx, &r.flags.etcdFlags)
	return err
}

// report is a bare etcd report.
func (r *retirement) report(ctx context.Context, f *etcdFlags) (*evidence.Report, error) {
	return r.buildReport(ctx, &reportFlags{etcdFlags: *f}, evidence.ReportOptions{})
}

// askPlugin asks the plugin of this machine under which key it writes.
func (r *retirement) askPlugin(ctx context.Context) retire.Plugin {
	if nobodyListens(ctx, r.cfg.Socket.Path) {
		return retire.Plugin{}
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	answer, err := kmsplugin.StatusOf(ctx, r.cfg.Socket.Path)
	if err != nil {
		return retire.Plugin{Err: err}
	}
	return retire.Plugin{Answered: true, KeyID: answer.KeyID}
}

// nobodyListens: there is no socket, or one that was left behind. Any other answer is somebody's.
func nobodyListens(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return socket.NobodyListens(err)
	}
	_ = conn.Close()
	return false
}
