package hold

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// armed starts a hold that is armed with one DEK.
func armed(t *testing.T, change ...func(*Config)) (r *rig, a Answer, dek []byte) {
	t.Helper()
	ring, id := newRing(t)
	r = start(t, ring, id, t.TempDir(), change...)
	a, dek = r.write(t)
	at(2 * time.Second)
	if s := r.State(); !s.Armed {
		t.Fatalf("not armed: %+v", s)
	}
	return r, a, dek
}

// A request has 1.5 s for the HSM, and is answered by the hold then; the next ones at once. The hold ends when requests are quick again.
func TestBrownOut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		delay        time.Duration
		first, after time.Duration // how long the first Decrypt takes, and one some minutes later
		holds        bool
	}{
		{500 * time.Millisecond, 500 * time.Millisecond, 500 * time.Millisecond, false},
		{1200 * time.Millisecond, 1200 * time.Millisecond, 1200 * time.Millisecond, false},
		{2500 * time.Millisecond, Budget, 0, true},
	} {
		t.Run(c.delay.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, a, dek := armed(t)
				r.ring.slow(c.delay)
				took := func() time.Duration {
					began := time.Now()
					r.mustRead(t, a, dek)
					return time.Since(began)
				}
				if d := took(); d != c.first {
					t.Errorf("the first took %s", d)
				}
				at(5 * time.Minute)
				if d := took(); d != c.after || r.Holding() != c.holds {
					t.Errorf("later one took %s, on hold: %t", d, r.Holding())
				}
				if n := r.count(EventBegan) + r.count(EventEnded); n > 1 {
					t.Errorf("it began and ended %d times", n)
				}
				r.mustStatus(t, r.id.String(), nil)
				r.ring.slow(1100 * time.Millisecond) // good probes, and not quick: no end
				at(5 * time.Minute)
				if r.Holding() != c.holds {
					t.Errorf("on hold at 1.1 s: %t", r.Holding())
				}
				r.ring.slow(900 * time.Millisecond)
				at(time.Minute)
				if r.Holding() {
					t.Error("still on hold at 0.9 s, below half of callTimeout")
				}
			})
		})
	}
}

// An HSM that comes and goes ends no hold before it has been there for five probes.
func TestFlapping(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, a, dek := armed(t, func(c *Config) { c.Limit = 24 * time.Hour })
		for range 20 {
			r.ring.fail(errAway)
			r.mustRead(t, a, dek)
			at(15 * time.Second)
			r.ring.fail(nil)
			at(15 * time.Second)
		}
		if n := r.count(EventBegan); n != 1 || !r.Holding() {
			t.Errorf("it began %d times", n)
		}
		for range 10 { // down and up for 30 s: each time there are five good probes
			r.ring.fail(errAway)
			r.mustRead(t, a, dek)
			at(30 * time.Second)
			r.ring.fail(nil)
			at(30 * time.Second)
		}
		if n := r.count(EventBegan); n > 11 {
			t.Errorf("it began %d times in 10 minutes", n)
		}
	})
}

// A caller who gives up, or has no time, says nothing of the HSM.
func TestImpatientCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, a, _ := armed(t)
		r.ring.slow(time.Second)
		ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
		defer cancel()
		if _, err := r.Open(ctx, a.KeyID, a.Bytes); !errors.Is(err, context.DeadlineExceeded) || r.Holding() {
			t.Errorf("%v, on hold: %t", err, r.Holding())
		}
		ctx, cancel = context.WithCancel(bg)
		cancel()
		if _, err := r.Seal(ctx, r.id, []byte("dek")); err == nil || r.Holding() {
			t.Errorf("%v, on hold: %t", err, r.Holding())
		}
	})
}

// All that counts is the time on hold in seven days, and when it is used up everything is wiped at once.
func TestLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, a, dek := armed(t)
		for range 2 {
			r.ring.fail(errAway)
			r.mustRead(t, a, dek)
			at(20 * time.Minute)
			r.ring.fail(nil)
			at(time.Hour)
		}
		r.ring.fail(errAway)
		r.mustRead(t, a, dek)
		at(18 * time.Minute)
		r.mustRead(t, a, dek)
		at(2 * time.Minute)
		if _, err := r.read(a); err == nil || r.Holding() || r.State().Held != 0 {
			t.Errorf("after the limit: %v, %+v", err, r.State())
		}
		if n := r.count(EventWiped); n != 1 {
			t.Errorf("wiped %d times", n)
		}
		if status, err := r.status(); err == nil {
			t.Errorf("Status is ok: %s", status)
		}
		r.ring.fail(nil)
		at(10 * time.Minute)
		if s := r.State(); s.Armed || s.Held != 0 {
			t.Errorf("armed again within seven days: %+v", s)
		}
		r.clock.suspend(7 * 24 * time.Hour)
		at(time.Minute)
		if s := r.State(); !s.Armed || s.Used != 0 {
			t.Errorf("not armed after seven days: %+v", s)
		}
		r.mustRead(t, a, dek)
	})
}

// The time passes while the machine is suspended or the process is stopped, and whatever the time of day says.
func TestClocks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		suspended, wall time.Duration
		over            bool
	}{
		"suspended for too long": {suspended: 2 * time.Hour, over: true},
		"suspended for less":     {suspended: 40 * time.Minute},
		"clock set back":         {wall: -100 * 24 * time.Hour},
		"clock set ahead":        {wall: 100 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, a, dek := armed(t)
				r.ring.fail(errAway)
				r.mustRead(t, a, dek)
				in, inDEK := r.write(t)
				r.clock.suspend(c.suspended)
				r.clock.set(c.wall)
				if c.over { // the first use finds out
					if _, err := r.read(a); err == nil || r.State().Held != 0 {
						t.Errorf("after the limit: %v, %+v", err, r.State())
					}
					return
				}
				at(2 * time.Second) // in which what was suspended is written to stateDir
				r.mustRead(t, a, dek)
				r.mustRead(t, in, inDEK)
				if s := r.State(); s.Used < c.suspended || s.Used > c.suspended+time.Minute {
					t.Errorf("used: %s", s.Used)
				}
				at(time.Hour - c.suspended)
				if r.Holding() {
					t.Error("on hold beyond the limit")
				}
			})
		})
	}
}

// After a restart the list is opened again while the HSM is there. What the process before used of the limit counts.
func TestRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		dir := t.TempDir()
		r := start(t, ring, id, dir)
		var all []Answer
		var deks [][]byte
		for range 2000 {
			a, dek := r.write(t)
			all, deks = append(all, a), append(deks, dek)
		}
		at(2 * time.Second)
		ring.fail(errAway)
		in, inDEK := r.write(t)
		all, deks = append(all, in), append(deks, inDEK)
		at(20 * time.Minute)
		ring.fail(nil)
		at(time.Minute)
		r.stop()

		ring.slow(5 * time.Millisecond)
		again := start(t, ring, id, dir)
		again.clock.suspend(24 * time.Hour)
		at(5 * time.Second)
		s := again.State()
		if !s.Armed || s.Held != 2001 || s.Listed != 2001 {
			t.Errorf("%+v", s)
		}
		if s.Used < 20*time.Minute || s.Used > 22*time.Minute {
			t.Errorf("used: %s", s.Used)
		}
		ring.slow(0)
		ring.fail(errAway)
		for i := range all {
			again.mustRead(t, all[i], deks[i])
		}
		again.stop()

		// Restarted while the HSM is away: there is nothing.
		third := start(t, ring, id, dir)
		if _, err := third.read(all[0]); !errors.Is(err, envelope.ErrUnavailable) || third.Holding() {
			t.Errorf("%v", err)
		}
	})
}

// A process that was killed may have been on hold for as long as it had charged beforehand.
func TestKilled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := armed(t)
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(r.dir)); err != nil { // as it stands while the process runs
			t.Fatal(err)
		}
		at(5 * time.Minute)
		again := start(t, r.ring, r.id, dir, func(c *Config) { c.Boot = r.clock.boot })
		if used := again.State().Used; used != time.Minute {
			t.Errorf("used: %s", used)
		}
		r.stop()
		again.stop()
		third := start(t, r.ring, r.id, r.dir)
		if used := third.State().Used; used != 0 {
			t.Errorf("after an end in order: used %s", used)
		}
	})
}

// A stateDir that cannot be written, or a count that cannot be read, keeps the hold from being armed.
func TestNotCounted(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, dir string){
		"not readable": func(t *testing.T, dir string) { put(t, dir, "used.json", "{") },
		"not writable": func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(holdfile.Folder(dir), "used.json", "full"), 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"a list that is not readable": func(t *testing.T, dir string) { put(t, dir, "list.json", "{") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ring, id := newRing(t)
				dir := t.TempDir()
				damage(t, dir)
				r := start(t, ring, id, dir)
				a, _ := r.write(t)
				at(2 * time.Second)
				if s := r.State(); s.Armed {
					t.Errorf("armed: %+v", s)
				}
				ring.fail(errAway)
				if _, err := r.read(a); err == nil {
					t.Error("the hold answered")
				}
			})
		})
	}
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := holdfile.MakeFolder(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(holdfile.Folder(dir), name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// hold seed fills the list; hold drop wipes, and keeps the hold off until it is filled again.
func TestSeedAndDrop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		dek := bytes.Repeat([]byte{7}, 32)
		entry := func() holdfile.Entry {
			sealed, err := ring.Seal(bg, id, dek)
			if err != nil {
				t.Fatal(err)
			}
			return holdfile.Entry{KeyID: id.String(), Envelope: sealed}
		}
		first, second := entry(), entry()
		forged := entry()
		forged.Envelope[20] ^= 1
		seed := holdfile.Seed{ID: holdfile.NewID(), Entries: []holdfile.Entry{first, second, first, forged}}
		if err := holdfile.SaveSeed(r.dir, seed); err != nil {
			t.Fatal(err)
		}
		at(2 * time.Second)
		s := r.State()
		if s.Seed != seed.ID || s.Added != 3 || !s.Armed || s.Held != 2 || s.Listed != 2 {
			t.Errorf("after the seed: %+v", s)
		}
		if _, found, _ := holdfile.LoadSeed(r.dir); found {
			t.Error("seed.json is still there")
		}
		ring.fail(errAway)
		r.mustRead(t, Answer{KeyID: first.KeyID, Bytes: first.Envelope}, dek)

		drop := holdfile.Drop{ID: holdfile.NewID()}
		if err := holdfile.SaveDrop(r.dir, drop); err != nil {
			t.Fatal(err)
		}
		at(2 * time.Second)
		if s := r.State(); s.Dropped != drop.ID || s.Held != 0 || s.Listed != 0 || s.Holding || s.Armed {
			t.Errorf("after the drop: %+v", s)
		}
		if list, err := holdfile.LoadList(r.dir); err != nil || len(list.Entries) > 0 {
			t.Errorf("list.json: %v, %v", list, err)
		}
		if _, err := r.Open(bg, first.KeyID, first.Envelope); err == nil {
			t.Error("the hold answered after a drop")
		}
		ring.fail(nil)
		r.write(t)
		at(time.Minute)
		if s := r.State(); s.Armed || s.Held != 0 {
			t.Errorf("armed again by itself: %+v", s)
		}
		if err := holdfile.SaveSeed(r.dir, holdfile.Seed{ID: holdfile.NewID(), Entries: []holdfile.Entry{first}}); err != nil {
			t.Fatal(err)
		}
		at(time.Minute)
		if s := r.State(); !s.Armed || s.Held != 2 { // that of write too
			t.Errorf("after another seed: %+v", s)
		}
	})
}

// A seed after a drop cannot be held while the HSM is away, and the hold says what it waits for.
func TestSeedWithoutHSM(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, a, _ := armed(t)
		r.ring.fail(errAway)
		at(time.Minute)
		put(t, r.dir, "drop.json", "?")
		at(2 * time.Second)
		if err := holdfile.SaveSeed(r.dir, holdfile.Seed{ID: holdfile.NewID(), Entries: []holdfile.Entry{{KeyID: a.KeyID, Envelope: a.Bytes}}}); err != nil {
			t.Fatal(err)
		}
		at(time.Minute)
		if s := r.State(); s.Armed || s.Listed != 1 || s.Why != "hold keys are missing: they are derived when the HSM answers" {
			t.Errorf("%+v", s)
		}
		r.ring.fail(nil)
		at(time.Minute)
		if s := r.State(); !s.Armed || s.Held != 1 {
			t.Errorf("when the HSM is back: %+v", s)
		}
	})
}

// A request to drop that cannot be read is one all the same.
func TestDropThatCannotBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := armed(t)
		put(t, r.dir, "drop.json", "?")
		at(2 * time.Second)
		if s := r.State(); s.Held != 0 || s.Armed {
			t.Errorf("%+v", s)
		}
	})
}

func TestFullList(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		entries := make([]holdfile.Entry, holdfile.MaxEntries)
		for i := range entries {
			sealed, err := ring.Seal(bg, id, []byte{1})
			if err != nil {
				t.Fatal(err)
			}
			entries[i] = holdfile.Entry{KeyID: id.String(), Envelope: sealed}
		}
		if err := holdfile.SaveSeed(r.dir, holdfile.Seed{ID: holdfile.NewID(), Entries: entries}); err != nil {
			t.Fatal(err)
		}
		at(2 * time.Second)
		if s := r.State(); !s.Armed || s.Held != holdfile.MaxEntries || s.Full {
			t.Errorf("%+v", s)
		}
		a, dek := r.write(t)
		r.mustRead(t, a, dek) // one DEK, however often it is seen
		if s := r.State(); s.Armed || !s.Full || s.Why != "the list is full, and a DEK had no room in it" {
			t.Errorf("%+v", s)
		}
		r.mustRead(t, a, dek)
	})
}

// A key that the HSM has no more, that the configuration refuses or that does not open any more is wiped, and no other.
func TestKeysGo(t *testing.T) {
	t.Parallel()
	type setting struct {
		r           *rig
		old, newest envelope.Version
		under       map[envelope.KeyID]Answer
		dek         []byte
	}
	for name, c := range map[string]struct {
		happens            func(s *setting)
		oldHeld, newHeld   bool
		holdsAfter         bool // after the HSM goes away
		statusErr          error
		oldListed, newList int
	}{
		"nothing":              {func(*setting) {}, true, true, true, nil, 1, 1},
		"the old one is gone":  {func(s *setting) { s.r.ring.show(s.newest) }, false, true, true, nil, 0, 1},
		"the old one refused":  {func(s *setting) { s.old.State = envelope.Refused; s.r.ring.show(s.old, s.newest) }, false, true, true, nil, 0, 1},
		"the old one is wrong": {func(s *setting) { s.r.ring.failKey(s.old.ID, envelope.ErrUnauthentic) }, false, true, false, nil, 1, 1},
		"the current is gone":  {func(s *setting) { s.r.ring.show() }, false, false, false, envelope.ErrRingEmpty, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, onHold := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					ring, _ := newRing(t)
					s := &setting{old: newKey(t, "ring", time.Now().Add(-48*time.Hour)), newest: newKey(t, "ring", time.Now().Add(-time.Hour)), under: map[envelope.KeyID]Answer{}}
					s.old.State = envelope.Retained
					ring.show(s.old, s.newest)
					s.r = start(t, ring, s.newest.ID, t.TempDir())
					s.dek = bytes.Repeat([]byte{3}, 32)
					for _, id := range []envelope.KeyID{s.old.ID, s.newest.ID} {
						a, err := s.r.Seal(bg, id, s.dek)
						if err != nil {
							t.Fatal(err)
						}
						s.under[id] = a
					}
					at(time.Minute)
					if st := s.r.State(); !st.Armed || st.Held != 2 {
						t.Fatalf("%+v", st)
					}
					if onHold {
						ring.fail(errAway)
						s.r.mustRead(t, s.under[s.old.ID], s.dek)
						ring.fail(nil)
					}
					c.happens(s)
					at(2 * time.Minute)
					for id, want := range map[envelope.KeyID]bool{s.old.ID: c.oldHeld, s.newest.ID: c.newHeld} {
						if _, held := s.r.store.dek(s.under[id].KeyID, s.under[id].Bytes); held != want {
							t.Errorf("held under %s: %t", id, held)
						}
						if day := envelope.DayOf(s.r.clock.now()); s.r.store.hasKeys(id, day, day) != want && !errors.Is(ring.byKey[id], envelope.ErrUnauthentic) {
							t.Errorf("hold key of %s: %t", id, !want)
						}
					}
					if status, err := s.r.status(); (err != nil) != (c.statusErr != nil) {
						t.Errorf("Status: %s, %v", status, err)
					}
					if st := s.r.State(); st.Listed != c.oldListed+c.newList {
						t.Errorf("%+v", st)
					}
					ring.fail(errAway)
					_, err := s.r.read(s.under[s.newest.ID])
					if (err == nil) != c.holdsAfter {
						t.Errorf("on hold: %v", err)
					}
				})
			}
		})
	}
}

// Two nodes with one key and clocks of their own: whatever one writes on hold, the other opens, with the HSM or on hold.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		apart time.Duration // between the last proofs
		skew  time.Duration // of the second clock
	}{
		"at once": {}, "three days later": {apart: 71 * time.Hour}, "clocks a day apart": {skew: 20 * time.Hour}, "the other way": {apart: 71 * time.Hour, skew: -20 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				long := func(cfg *Config) { cfg.Limit = 72 * time.Hour }
				ring, id := newRing(t)
				one := start(t, ring, id, t.TempDir(), long)
				one.write(t)
				ring2 := &fakeRing{byKey: ring.byKey, view: ring.view}
				two := start(t, ring2, id, t.TempDir(), long)
				two.clock.set(c.skew)
				two.write(t)
				at(time.Minute)
				ring.fail(errAway)
				early, earlyDEK := one.write(t)
				one.clock.suspend(c.apart)
				two.clock.suspend(c.apart)
				at(time.Minute)
				late, lateDEK := one.write(t)
				if !early.OnHold || !late.OnHold {
					t.Fatal("not on hold")
				}
				two.mustRead(t, early, earlyDEK) // with the HSM
				ring2.fail(errAway)
				two.mustRead(t, late, lateDEK)
				theirs, theirDEK := two.write(t)
				one.mustRead(t, theirs, theirDEK)
				for _, r := range []*rig{one, two} {
					r.mustStatus(t, id.HoldString(), nil)
				}
			})
		})
	}
}

// A key that becomes current meanwhile is named when the hold is over, and not before.
func TestRotationOnHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := armed(t)
		r.ring.fail(errAway)
		r.write(t)
		old := r.ring.Advance().Versions[0]
		old.State = envelope.Retained
		next := newKey(t, "ring", time.Now())
		r.ring.show(old, next)
		r.ring.fail(nil)
		at(12 * time.Second) // some good probes, not five
		r.mustStatus(t, r.id.HoldString(), nil)
		if a, _ := r.write(t); a.KeyID != r.id.HoldString() {
			t.Errorf("written under %s", a.KeyID)
		}
		at(time.Minute)
		r.mustStatus(t, next.ID.String(), nil)
	})
}

// On hold the probe comes every five seconds, whatever probeInterval is, and begins to at once.
func TestProbesOnHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, a, dek := armed(t)
		at(time.Second)
		r.ring.fail(errAway)
		r.mustRead(t, a, dek)
		before, _ := r.ring.asked()
		at(time.Minute)
		if n, _ := r.ring.asked(); n-before < 12 || n-before > 15 {
			t.Errorf("%d probes in a minute", n-before)
		}
		if !r.Holding() {
			t.Error("not on hold")
		}
		if _, err := r.Open(bg, r.id.String(), []byte{1, 1}); errors.Is(err, problem.ErrNotHeld) {
			t.Error(err)
		}
	})
}

// The HSM is asked for what is missing and for nothing else: one hold key a day and key, beside the probes.
func TestCallsOnStandby(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := armed(t)
		at(time.Minute)
		before, _ := r.ring.asked()
		at(time.Hour)
		n, _ := r.ring.asked()
		if more := n - before - 2*60; more != 0 {
			t.Errorf("%d calls in an hour beside the probes", more)
		}
		before = n
		r.clock.set(24 * time.Hour)
		at(time.Minute)
		if n, _ = r.ring.asked(); n-before != 3 {
			t.Errorf("%d calls at the next day's first probes", n-before)
		}
	})
}

// A slow HSM is no reason not to be armed: what is asked beside requests has more time than they have.
func TestArmsOnSlowHSM(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		ring.slow(1900 * time.Millisecond)
		r := start(t, ring, id, t.TempDir())
		sealed, err := ring.Seal(bg, id, []byte("dek"))
		if err != nil {
			t.Fatal(err)
		}
		if err := holdfile.SaveSeed(r.dir, holdfile.Seed{ID: holdfile.NewID(), Entries: []holdfile.Entry{{KeyID: id.String(), Envelope: sealed}}}); err != nil {
			t.Fatal(err)
		}
		at(3 * time.Minute)
		if s := r.State(); !s.Armed {
			t.Errorf("%+v", s)
		}
	})
}

// Only a request under a key of the ring that is written under begins a hold. One under a key that nobody has takes long, because it is
// looked for everywhere, and one of a ring that is only read concerns another HSM. The probe looks at once.
func TestOtherKeysBeginNoHold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ring  string
		known bool
		away  bool // so is the HSM that is written with
	}{
		"nobody has it": {ring: "ring"}, "a read ring": {ring: "old", known: true},
		"all away": {ring: "old", known: true, away: true}, "nobody has it, and the HSM is away": {ring: "ring", away: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, _, _ := armed(t)
				other := newKey(t, c.ring, time.Now().Add(-time.Hour))
				if c.known {
					r.ring.also(other)
					at(35 * time.Second)
				}
				sealed := envelope.Envelope{Profile: envelope.AESGCM, Unique: bytes.Repeat([]byte{1}, envelope.NonceSize), Sealed: make([]byte, 48)}
				r.ring.failKey(other.ID, errAway)
				if c.away {
					r.ring.fail(errAway)
				}
				if _, err := r.Open(bg, other.ID.String(), sealed.Marshal()); !errors.Is(err, envelope.ErrUnavailable) {
					t.Errorf("%v", err)
				}
				at(time.Second)
				if r.Holding() != c.away {
					t.Errorf("on hold: %t", r.Holding())
				}
			})
		})
	}
}

// Where no hold would answer after it, a request has all the time that its caller gives it.
func TestNoBudgetWithoutHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir()) // no DEK is listed
		ring.slow(2 * time.Second)
		began := time.Now()
		a, dek := r.write(t)
		if took := time.Since(began); took != 2*time.Second || a.OnHold {
			t.Errorf("it took %s: %+v", took, a)
		}
		at(2 * time.Second) // armed now
		began = time.Now()
		r.mustRead(t, a, dek)
		if took := time.Since(began); took != Budget {
			t.Errorf("it took %s", took)
		}
	})
}
