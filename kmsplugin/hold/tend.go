package hold

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// tendEvery is how often limits and files are looked at.
const tendEvery = time.Second

// Troubles that keep the hold from being armed, in the order in which they are reported, besides what whyNot finds.
const (
	aboutPage   = "memory"
	aboutList   = "list" // it cannot be read, so nobody knows what it had
	aboutWrite  = "list.json"
	aboutSeed   = "seed.json"
	aboutLedger = "used.json"
)

// Run tends the hold until ctx ends, and then wipes it.
func (h *Hold) Run(ctx context.Context) {
	var beside sync.WaitGroup
	beside.Go(func() { h.watchLimits(ctx) })
	beside.Go(func() { h.workBeside(ctx) })
	ended, recorded := make(chan struct{}), make(chan struct{})
	go func() { defer close(recorded); h.recordBeside(ended) }()
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		h.tend()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-h.look:
		}
	}
	beside.Wait()
	h.finish()
	close(ended)
	select {
	case <-recorded:
	case <-time.After(recordWait): // the trail hangs
	}
}

// recordBeside passes events on to the trail, which may hang in a write for as long as its disk does.
func (h *Hold) recordBeside(ended <-chan struct{}) {
	for {
		select {
		case e := <-h.events:
			h.cfg.Record(e)
		case <-ended:
			for len(h.events) > 0 {
				h.cfg.Record(<-h.events)
			}
			return
		}
	}
}

// watchLimits wipes in time, also while a disk hangs.
func (h *Hold) watchLimits(ctx context.Context) {
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.mu.Lock()
			h.endIfOver(h.cfg.Boot())
			h.mu.Unlock()
		}
	}
}

// tend does what has to do with files, and reports whether the hold is armed.
func (h *Hold) tend() {
	h.takeDrop()
	h.takeSeed()
	h.saveLedger(true)
	h.saveList()
	h.mu.Lock()
	free := h.free
	h.free = false
	h.tell()
	h.mu.Unlock()
	if free { // the ciphers of the standard library leave key schedules behind, which nobody can wipe
		debug.FreeOSMemory()
	}
}

// finish ends the hold of this process.
func (h *Hold) finish() {
	h.mu.Lock()
	h.wipe("the plugin ends")
	h.mu.Unlock()
	h.saveLedger(false)
	h.saveList()
}

// note keeps what keeps the hold from being armed, and logs it when it begins.
func (h *Hold) note(about string, err error, advice string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.troubles, about)
		return
	}
	if _, lasts := h.troubles[about]; !lasts {
		if own := hint.Of(err); own != "" {
			advice = own
		}
		h.cfg.Logger.Warn("the outage hold cannot be used", "about", about, "error", err, "hint", advice)
	}
	h.troubles[about] = err.Error()
}

// whyNot is what keeps the hold from being armed; "": it is. mu is held.
func (h *Hold) whyNot() string {
	m, boot := &h.machine, h.cfg.Boot()
	if m.proof.key.IsZero() {
		return "no key has been proven on the HSM yet"
	}
	first, last := days(m.proof.day, h.cfg.Limit)
	for _, about := range []string{aboutPage, aboutList, aboutWrite, aboutSeed, aboutLedger} {
		if text := h.troubles[about]; text != "" {
			return text
		}
	}
	switch {
	case h.paused:
		return "hold drop wiped it: run hsm-kms hold seed to fill it again"
	case m.revoked != nil:
		return "the HSM refuses the PIN"
	case m.over(boot):
		return "the time on hold is used up: " + h.cfg.Limit.String() + " within 7 days"
	case !m.ledger.counted(boot):
		return errUncounted.Error()
	case h.store.hasKeys(m.proof.key, first, max(first, last-1)): // the last one is for after midnight
	case h.up:
		return "hold keys are being derived"
	default:
		return "hold keys are missing: they are derived when the HSM answers"
	}
	switch c := h.count(); {
	case c.full:
		return "the list is full, and a DEK had no room in it"
	case c.listed == 0:
		return "no DEK is listed: run hsm-kms hold seed"
	case c.held < c.listed:
		return fmt.Sprintf("%d of %d listed DEKs are not held", c.listed-c.held, c.listed)
	}
	return ""
}

// count is the list in numbers. A ring that was not read yet may serve any key of its name. mu is held.
func (h *Hold) count() counts {
	return h.store.count(func(id envelope.KeyID) bool {
		read, configured := h.rings[id.Ring]
		return h.served[id] || configured && !read
	})
}

// tell logs and records whether the hold is armed, when that changes. On hold the question does not arise. mu is held.
func (h *Hold) tell() {
	if h.machine.holding {
		return
	}
	why := h.whyNot()
	was, reported := h.why, h.reported
	h.why, h.reported = why, true
	h.armed.Store(why == "")
	switch {
	case why == "" && (was != "" || !reported):
		c := h.count()
		h.record(EventArmed, h.machine.proof.key.String(), fmt.Sprintf("%d DEKs are held", c.held))
		h.cfg.Logger.Info("the outage hold is armed", "held", c.held)
	case why != "" && was == "" && reported:
		h.record(EventDisarmed, "", why)
		h.cfg.Logger.Warn("the outage hold is not armed any more", "reason", why, "hint", "see what hsm-kms status reports of it; docs/outage.md")
	}
}

// State is what Status reports of the hold. It asks nobody and does not wait.
func (h *Hold) State() *holdfile.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	boot := h.cfg.Boot()
	h.endIfOver(boot)
	s, c := h.state, h.count()
	s.Held, s.Listed, s.Full, s.Missing = c.held, c.listed, c.full, c.missing
	s.Used = h.machine.ledger.used(boot)
	if h.machine.holding {
		s.Armed, s.Holding, s.Since, s.Until = true, true, h.machine.since, h.cfg.Now().Add(h.machine.ledger.left(boot))
		return &s
	}
	s.Why = h.whyNot()
	s.Armed = s.Why == ""
	return &s
}

// loadList reads the list that an earlier process left.
func (h *Hold) loadList() {
	h.takeDrop() // before anything of it is held
	list, err := holdfile.LoadList(h.cfg.StateDir)
	h.note(aboutList, err, "hsm-kms hold drop makes a new list, and hsm-kms hold seed fills it")
	for _, e := range list.Entries {
		h.store.list(e.KeyID, e.Envelope)
	}
	h.store.saved()
}

// takeDrop wipes what is held when somebody asks for it. A request that cannot be understood is one. It stays, and is done again, until no
// file is left from which a restarted plugin would fill the hold.
func (h *Hold) takeDrop() {
	drop, found, err := holdfile.LoadDrop(h.cfg.StateDir)
	if !found {
		return
	}
	h.mu.Lock()
	h.paused = true
	h.wipe("hsm-kms hold drop")
	h.store.empty()
	h.mu.Unlock()
	debug.FreeOSMemory()
	left := firstOf(holdfile.RemoveList(h.cfg.StateDir), holdfile.RemoveSeed(h.cfg.StateDir)) // also while the disk is full
	if left == nil {
		left = holdfile.RemoveDrop(h.cfg.StateDir)
	}
	if err = firstOf(left, err); err != nil && !h.dropStays {
		h.cfg.Logger.Warn("the outage hold was wiped, and not all of its files were", "error", err, "hint", hint.Of(err))
	}
	h.dropStays = left != nil
	h.note(aboutList, nil, "")
	h.mu.Lock()
	h.state.Dropped = drop.ID
	h.mu.Unlock()
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// takeSeed takes up what hold seed found in etcd.
func (h *Hold) takeSeed() {
	seed, found, err := holdfile.LoadSeed(h.cfg.StateDir)
	if !found {
		return
	}
	added, left := 0, 0
	for _, e := range seed.Entries {
		switch isNew, fits := h.store.list(e.KeyID, e.Envelope); {
		case isNew:
			added++
		case !fits:
			left++
		}
	}
	if err == nil {
		h.note(aboutList, nil, "") // this is what etcd has
		if left == 0 {
			h.store.complete()
		}
	}
	h.saveList()
	removeErr := holdfile.RemoveSeed(h.cfg.StateDir)
	h.note(aboutSeed, removeErr, "let the user that runs the plugin write to stateDir")
	if err != nil && removeErr == nil {
		h.cfg.Logger.Warn("what hold seed handed over cannot be used, and is removed", "error", err, "hint", "run hsm-kms hold seed again")
	}
	if err != nil || removeErr != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Seed, h.state.Added, h.state.Left = seed.ID, added, left
	if h.paused {
		h.paused = false
		if h.up && h.machine.ledger.left(h.cfg.Boot()) > 0 {
			h.store.open()
		}
	}
	h.wake(h.work)
}

// saveList writes the list when it has changed.
func (h *Hold) saveList() {
	h.mu.Lock()
	unread := h.troubles[aboutList] != "" // it must not be replaced by one that says less
	h.mu.Unlock()
	if unread {
		return
	}
	list, changed := h.store.changed()
	if !changed {
		return
	}
	err := holdfile.SaveList(h.cfg.StateDir, list)
	if err != nil {
		h.store.unsaved()
	}
	h.note(aboutWrite, err, "let the user that runs the plugin write to stateDir")
}

// saveAgain is how old the ledger in stateDir may be: what is newer counts as not passed after a reboot.
const saveAgain = time.Hour

// saveLedger writes the ledger when what it charged beforehand is running out, when a hold began or ended, and from time to time.
func (h *Hold) saveLedger(goesOn bool) {
	h.mu.Lock()
	boot := h.cfg.Boot()
	if goesOn && !h.machine.ledger.isDue(boot) {
		h.mu.Unlock()
		return
	}
	state, inAll, open := h.machine.ledger.state(h.cfg.BootID, boot, goesOn), h.machine.ledger.inAll(boot), h.machine.ledger.open
	h.mu.Unlock()
	err := saveLedger(h.cfg.StateDir, state)
	h.note(aboutLedger, err, "let the user that runs the plugin write to stateDir")
	if err == nil {
		h.mu.Lock()
		h.machine.ledger.wrote(inAll, boot, open)
		h.mu.Unlock()
	}
}
