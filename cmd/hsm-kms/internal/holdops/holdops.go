// Package holdops fills and wipes the outage hold of the plugin on this machine. A DEK never leaves the plugin: what is handed over
// are wrapped DEKs, and the plugin opens them itself.
//
// It depends on app for the findings, on kmsplugin, kmsplugin/socket and kmsplugin/hold/holdfile, and on hint. Each function runs
// in one goroutine. Two commands at once do no harm: of two lists that are handed over at one moment, one may have to wait.
package holdops

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/socket"
)

// pause is between two questions to the plugin.
const pause = 250 * time.Millisecond

// errOff: the plugin has no hold.
var errOff = errors.New("the plugin has no outage hold")

// hintOff is what to do about errOff.
const hintOff = "set outageHold in the configuration of every node, and restart the plugins one after the other; docs/outage.md says when to"

// Plugin is the plugin on this machine.
type Plugin struct {
	Socket   string
	StateDir string
	// Wait bounds how long the plugin may take to do what it is asked for.
	Wait time.Duration
}

// state asks the plugin. Errors wrap errOff, or are those of kmsplugin.StatusOf.
func (p Plugin) state(ctx context.Context) (*holdfile.State, error) {
	ctx, cancel := context.WithTimeout(ctx, kmsplugin.StatusTimeout)
	defer cancel()
	answer, err := kmsplugin.StatusOf(ctx, p.Socket)
	switch {
	case answer.Hold != nil:
		return answer.Hold, nil // whatever Status says of the HSM
	case err == nil:
		err = app.Finding(hint.Wrap(errOff, hintOff))
	}
	return nil, err
}

// until asks the plugin until done or the time is over. state is the last answer, nil: there was none.
func (p Plugin) until(ctx context.Context, done func(*holdfile.State) bool) (state *holdfile.State, err error) {
	for end := time.Now().Add(p.Wait); ; {
		now, err := p.state(ctx)
		if err == nil {
			state = now
		}
		switch {
		case errors.Is(err, errOff):
			return nil, err
		case err == nil && done(state):
			return state, nil
		case time.Until(end) < pause:
			return state, err
		}
		select {
		case <-ctx.Done():
			return state, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Ready fails unless a plugin answers that has a hold.
func (p Plugin) Ready(ctx context.Context) error {
	_, err := p.state(ctx)
	if err != nil && socket.IsAbsent(ctx, p.Socket) {
		return app.Finding(hint.Wrap(fmt.Errorf("no plugin answers on %s, and only a plugin that runs can hold DEKs", p.Socket), "start it, then run this again"))
	}
	return err
}

// Seeded is what became of a list that was handed over.
type Seeded struct {
	TakenUp bool            // the plugin has added it to its own list
	State   *holdfile.State // what the plugin said last; nil: nothing
}

// Seed hands wrapped DEKs to the plugin, and waits until it holds everything on its list.
func (p Plugin) Seed(ctx context.Context, entries []holdfile.Entry) (Seeded, error) {
	seed := holdfile.Seed{ID: holdfile.NewID(), Entries: entries}
	if err := holdfile.SaveSeed(p.StateDir, seed); err != nil {
		return Seeded{}, err
	}
	takenUp := func(s *holdfile.State) bool { return s.Seed == seed.ID }
	state, err := p.until(ctx, func(s *holdfile.State) bool { return takenUp(s) && (s.Armed || s.Left > 0) })
	done := Seeded{TakenUp: state != nil && takenUp(state), State: state}
	switch {
	case done.TakenUp && state.Armed && state.Left == 0:
		return done, nil
	case done.TakenUp && state.Left > 0:
		return done, app.Finding(hint.Wrap(fmt.Errorf("the list of the hold is full: %d DEKs did not fit in it", state.Left),
			"run hsm-kms etcd migrate, then hsm-kms hold drop and hsm-kms hold seed on each node, while the HSM answers"))
	case done.TakenUp:
		return done, app.Finding(hint.Wrap(fmt.Errorf("the hold is not armed after %s: %s", p.Wait, state.Why),
			"docs/outage.md#what-status-says has what to do for each reason; hsm-kms status shows the reason later on"))
	case err == nil:
		err = errors.New("it has not read the list")
	}
	return done, app.Finding(hint.Wrap(fmt.Errorf("after %s it is unknown what the plugin does with the list: %w", p.Wait, err),
		"check that --config is that of the plugin, which reads "+holdfile.Folder(p.StateDir)+" then; the list stays there, and the plugin adds it when it can; see what it says now with: hsm-kms status"))
}

// Outcome is what became of Drop.
type Outcome string

const (
	// Done: the plugin has wiped its hold.
	Done Outcome = "done"
	// NotDone: nothing was wiped.
	NotDone Outcome = "not done"
	// Unknown: it may have been.
	Unknown Outcome = "unknown"
)

// Drop has the plugin wipe its hold and empty its list. Unless the error is nil, the outcome is not Done; the request stays then, and the
// plugin does it when it can.
func (p Plugin) Drop(ctx context.Context) (Outcome, error) {
	drop := holdfile.Drop{ID: holdfile.NewID()}
	if err := holdfile.SaveDrop(p.StateDir, drop); err != nil {
		return NotDone, err
	}
	if socket.IsAbsent(ctx, p.Socket) {
		return NotDone, app.Finding(hint.Wrap(fmt.Errorf("no plugin answers on %s: nothing was wiped; a plugin that starts here empties its list first", p.Socket),
			"look for a plugin that is stopped or frozen, which keeps what it holds: ps l -C hsm-kms; end it if you find one"))
	}
	state, err := p.until(ctx, func(s *holdfile.State) bool { return s.Dropped == drop.ID })
	switch {
	case errors.Is(err, errOff):
		// It does not look at the request, and a later one that has a hold must not find it.
		return Done, errors.Join(holdfile.RemoveDrop(p.StateDir), holdfile.RemoveList(p.StateDir), holdfile.RemoveSeed(p.StateDir))
	case state != nil && state.Dropped == drop.ID:
		return Done, nil
	case err == nil:
		err = errors.New("it has not said so")
	}
	return Unknown, app.Finding(hint.Wrap(fmt.Errorf("after %s it is unknown whether the plugin has wiped its hold, and the request stays until it has: %w", p.Wait, err),
		"check that --config is that of the plugin, which reads "+holdfile.Folder(p.StateDir)+" then, and run this again; if it must not wait, stop the plugin on this node: its memory ends with it, and kube-apiserver here cannot start before the HSM answers"))
}
