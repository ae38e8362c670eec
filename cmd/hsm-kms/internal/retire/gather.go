package retire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/audit"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

// gather finds out what is to be known of the key. What a refusal can be made of is in the facts; an error means that it
// could not be found out. Of the earlier facts the files are taken over: they are read once.
func (r *retirement) gather(ctx context.Context, earlier Facts) (Facts, error) {
	f := Facts{Problems: r.tokenProblems(ctx), Evidence: earlier.Evidence, Snapshots: earlier.Snapshots}
	// Now: somebody may have been asked meanwhile. Of a ring that is only read, what matters is whether this machine wrote under it last.
	if f.Proven, f.ProvenErr = health.LoadProven(r.app.Config.StateDir, r.app.Config.KeyRing); r.app.Read != nil {
		f.Proven, f.ProvenErr = health.LastProven(r.app.Config.StateDir)
	}
	if len(f.Problems) > 0 {
		return f, nil
	}
	if err := r.in.Ring.Refresh(ctx); err != nil {
		return f, err
	}
	if err := r.in.Ring.Exercise(ctx); err != nil && !errors.Is(err, envelope.ErrAmbiguous) && r.app.Read == nil {
		return f, fmt.Errorf("finding out which key is current: %w", err)
	}
	if err := r.gatherWritten(ctx, &f); err != nil {
		return f, err
	}
	f.Now, f.View = time.Now(), r.in.Ring.Advance()
	f.Cluster, f.ClusterErr = hsm.ClusterOf(r.in.Set.Bindings(ctx))
	serials := r.in.Set.Serials()
	for _, token := range r.in.Set.Members() {
		f.Tokens = append(f.Tokens, Token{Name: token.Name(), Serial: serials[token.Name()]})
	}
	switch targetState(f.View, r.KeyID) {
	case "":
		known, err := Destructions(r.app.Config.Audit.Path)
		f.Destruction, f.DestructionErr = known[r.KeyID.String()], err
		return f, nil
	case envelope.Retained:
		f.Plugin = r.askPlugin(ctx)
		return f, r.gatherEvidence(ctx, &f)
	case envelope.Pending:
		f.Used, f.UsedErr = audit.FindKey(r.app.Config.Audit.Path, r.KeyID.String())
		if !r.NoEtcd {
			f.Etcd, f.EtcdErr = r.Report(ctx, nil)
			f.Now, f.View = time.Now(), r.in.Ring.Advance() // reading may have taken minutes
		}
	}
	f.Plugin = r.askPlugin(ctx)
	return f, ctx.Err()
}

// gatherWritten reads the ring that is written under, if that is another one.
func (r *retirement) gatherWritten(ctx context.Context, f *Facts) error {
	if r.written == nil {
		return nil
	}
	if err := r.written.Ring.Refresh(ctx); err != nil {
		return err
	}
	f.Written = nil
	for _, v := range r.written.Ring.Advance().Versions {
		if v.State != envelope.Refused {
			f.Written = append(f.Written, v.ID.String())
		}
	}
	return nil
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
func (r *retirement) gatherEvidence(ctx context.Context, f *Facts) error {
	if r.EvidenceFile == "" {
		return nil
	}
	if f.Evidence == nil {
		file, err := gate.Load(r.EvidenceFile)
		if errors.Is(err, gate.ErrNotEvidence) {
			f.NotEvidence = err
			return nil
		}
		if err != nil {
			return hint.Wrap(err, "give the file that this wrote: hsm-kms etcd report -o json > report.json")
		}
		for _, path := range r.Snapshots {
			report, err := r.Report(ctx, []string{path})
			if err != nil {
				return err
			}
			f.Snapshots = append(f.Snapshots, report)
		}
		f.Evidence = file
	}
	var err error
	f.Etcd, err = r.Report(ctx, nil)
	return err
}

// askPlugin asks the plugin of this machine under which key it writes.
func (r *retirement) askPlugin(ctx context.Context) Plugin {
	if socket.IsAbsent(ctx, r.app.Config.Socket.Path) {
		return Plugin{}
	}
	ctx, cancel := context.WithTimeout(ctx, kmsplugin.StatusTimeout)
	defer cancel()
	answer, err := kmsplugin.StatusOf(ctx, r.app.Config.Socket.Path)
	if err != nil {
		return Plugin{Err: err}
	}
	p := Plugin{Answered: true, KeyID: answer.KeyID}
	if answer.Hold != nil {
		p.Hold = answer.Hold.Limit
	}
	return p
}
