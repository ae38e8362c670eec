package hold

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

func TestPage(t *testing.T) { // not in parallel: it counts allocations
	p, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	p.draw()
	for _, size := range []int{1, 31, 32, 33, 63, 64, 65, envelope.MaxDEK} {
		secret := bytes.Repeat([]byte{0xab}, size)
		a, b := p.seal(secret), p.seal(secret)
		if bytes.Equal(a.data, b.data) && size > 4 || bytes.Contains(a.data, secret[:min(size, 8)]) && size > 4 {
			t.Errorf("%d bytes: the same twice, or not sealed", size)
		}
		out := make([]byte, size)
		if err := p.open(&a, out); err != nil || !bytes.Equal(out, secret) {
			t.Errorf("%d bytes: %v", size, err)
		}
		for _, damage := range []func(*sealed){
			func(s *sealed) { s.data[size-1] ^= 1 }, func(s *sealed) { s.tag[0] ^= 1 }, func(s *sealed) { s.number++ },
		} {
			bad := sealed{number: a.number, data: bytes.Clone(a.data), tag: a.tag}
			damage(&bad)
			if err := p.open(&bad, out); err == nil || !bytes.Equal(out, make([]byte, size)) {
				t.Errorf("%d bytes: damaged memory was taken for a secret", size)
			}
		}
		if !bytes.Equal(p.memory[scratchAt+block:], make([]byte, len(p.memory)-scratchAt-block)) {
			t.Errorf("%d bytes: the secret is still in the page", size)
		}
	}
	a := p.seal([]byte("secret"))
	p.wipe()
	if !bytes.Equal(p.memory, make([]byte, len(p.memory))) {
		t.Error("the page is not empty")
	}
	if err := p.open(&a, make([]byte, 6)); err == nil {
		t.Error("a wiped page opened what it had sealed")
	}
	p.draw()
	if err := p.open(&a, make([]byte, 6)); err == nil {
		t.Error("another key opened it")
	}
	if n := testing.AllocsPerRun(100, func() { _ = p.tag(1, []byte("secret")) }); n > 0 {
		t.Errorf("the hash makes %v allocations: it may leave the key there", n)
	}
}

// The ledger against the plain sum of all times on hold within seven days, over reboots and kills.
func TestLedger(t *testing.T) {
	t.Parallel()
	stories := uint64(60)
	if testing.Short() {
		stories = 10 // make test tells all
	}
	for seed := range stories {
		random := rand.New(rand.NewPCG(seed, 1))
		ledgerStory(t, seed, random)
	}
}

func ledgerStory(t *testing.T, seed uint64, random *rand.Rand) {
	t.Helper()
	const limit = 10 * time.Hour
	type hold struct{ from, to time.Duration } // in true time
	var holds []hold
	truth, boot, bootID := time.Duration(0), time.Duration(0), "1"
	var kept ledgerState
	l := newLedger(limit, kept, bootID, boot, false)
	save := func(advance bool) {
		text, err := json.Marshal(l.state(bootID, boot, advance))
		if err != nil {
			t.Fatal(err)
		}
		if kept, err = parseLedger(text); err != nil {
			t.Fatalf("seed %d: it cannot read what it wrote: %v: %s", seed, err, text)
		}
		l.wrote(l.inAll(boot), boot, l.open)
	}
	save(true)
	pass := func(d time.Duration) {
		if l.open {
			holds[len(holds)-1].to = truth + d
		}
		truth, boot = truth+d, boot+d
	}
	used := func() (sum time.Duration) {
		for _, h := range holds {
			sum += max(h.to-max(h.from, truth-window), 0)
		}
		return sum
	}
	for range 60 {
		switch random.IntN(6) {
		case 0:
			if !l.open && l.left(boot) > 0 && l.counted(boot) {
				l.begin(boot)
				holds = append(holds, hold{truth, truth})
			}
		case 1:
			l.end(boot)
			save(true)
		case 2: // on hold it is saved often, as the plugin does
			for range random.IntN(60) {
				pass(l.advance() / 4)
				if !l.counted(boot) {
					t.Fatalf("seed %d: it is not counted", seed)
				}
				save(true)
			}
		case 3:
			l.end(boot)
			pass(time.Duration(random.Int64N(int64(3 * 24 * time.Hour))))
			save(true)
		case 4: // killed: the time since the last write is unknown
			if l.open {
				pass(l.advance() / 2)
			}
			l = newLedger(limit, kept, bootID, boot, false)
			save(true)
		case 5: // a reboot, some time later
			l.end(boot)
			truth += time.Duration(random.Int64N(int64(time.Hour)))
			boot, bootID = time.Minute, bootID+"1"
			truth += boot
			l = newLedger(limit, kept, bootID, boot, false)
			save(true)
		}
		if l.used(boot) < used() {
			t.Fatalf("seed %d: it counts %s, and %s were on hold within seven days", seed, l.used(boot), used())
		}
		if len(kept.Spans) > maxSpans+2 {
			t.Fatalf("%d spans", len(kept.Spans))
		}
	}
	l.end(boot)
	if boot += window; l.used(boot) != 0 {
		t.Errorf("seed %d: it never forgets: %s", seed, l.used(boot))
	}
}

// A process that is killed again and again uses up no more of the limit than the time that passes.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	boot := time.Hour
	var kept ledgerState
	for range 200 {
		l := newLedger(time.Hour, kept, "boot", boot, false)
		kept = l.state("boot", boot, true)
		boot += 10 * time.Second
	}
	if used, passed := newLedger(time.Hour, kept, "boot", boot, false).used(boot), 200*10*time.Second; used > passed {
		t.Errorf("used %s in %s", used, passed)
	}
	l := newLedger(time.Hour, kept, "another", time.Minute, false) // nobody knows when it was switched off
	if used := l.used(time.Minute); used < time.Minute {
		t.Errorf("after a reboot: used %s", used)
	}
}

func TestManySpans(t *testing.T) {
	t.Parallel()
	l := newLedger(72*time.Hour, ledgerState{}, "1", 0, false)
	boot := time.Duration(0)
	for range 3 * maxSpans {
		l.begin(boot)
		boot += 20 * time.Second
		l.end(boot)
		boot += time.Minute
		s := l.state("1", boot, true)
		if len(s.Spans) > maxSpans {
			t.Fatalf("%d spans", len(s.Spans))
		}
	}
	if used, want := l.used(boot), 3*maxSpans*20*time.Second; used != want {
		t.Errorf("used %s, want %s", used, want)
	}
}

func FuzzLedger(f *testing.F) {
	text, err := json.Marshal(newLedger(time.Hour, ledgerState{}, "boot", time.Hour, true).state("boot", time.Hour, true))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":1,"bootID":"x","boot":1,"elapsed":5,"spans":[{"from":1,"to":2}],"advance":0}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		was, err := parseLedger(text)
		if err != nil {
			return
		}
		for _, id := range []string{was.BootID, "other"} {
			l := newLedger(time.Hour, was, id, time.Hour, false)
			for _, boot := range []time.Duration{0, time.Hour, 1000 * time.Hour} {
				if used := l.used(boot); used < 0 || l.left(boot) < 0 || l.left(boot) > time.Hour {
					t.Errorf("used %s, left %s", used, l.left(boot))
				}
			}
			if _, err := json.Marshal(l.state(id, time.Hour, true)); err != nil {
				t.Error(err)
			}
		}
	})
}

// Days on both sides of the last proof, and none beyond what an envelope can name.
func TestDays(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		proven envelope.Day
		limit  time.Duration
		want   []envelope.Day
	}{
		{100, time.Hour, []envelope.Day{98, 102}}, {100, 24 * time.Hour, []envelope.Day{98, 102}}, {100, 25 * time.Hour, []envelope.Day{97, 103}},
		{100, 72 * time.Hour, []envelope.Day{96, 104}}, {0, time.Hour, []envelope.Day{0, 2}}, {envelope.MaxDay, time.Hour, []envelope.Day{envelope.MaxDay - 2, envelope.MaxDay}},
	} {
		if first, last := days(c.proven, c.limit); !slices.Equal([]envelope.Day{first, last}, c.want) {
			t.Errorf("day %d, %s: %d to %d, want %v", c.proven, c.limit, first, last, c.want)
		}
	}
}

// One key can be wiped, and the others stay.
func TestStore(t *testing.T) {
	t.Parallel()
	p, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(p)
	a, b := newKey(t, "ring", time.Now()).ID, newKey(t, "ring", time.Now()).ID
	all := func(envelope.KeyID) bool { return true }
	s.put(a.String(), []byte("listed while it was closed"), []byte("dek"))
	if c := s.count(all); c.held != 0 || c.listed != 1 || !slices.Equal(c.missing, []string{a.String()}) {
		t.Errorf("%+v", c)
	}
	s.open()
	s.put(a.String(), []byte("envelope"), []byte("dek of a"))
	s.put(b.HoldString(), []byte("envelope"), []byte("dek of b"))
	s.put("no key_id", []byte("envelope"), []byte("dek"))
	key := envelope.HoldKey{1}
	s.putKey(a, 5, &key)
	s.putKey(b, 5, &key)
	if c := s.count(func(id envelope.KeyID) bool { return id == b }); c.held != 1 || c.listed != 1 || len(c.missing) > 0 {
		t.Errorf("of served keys: %+v", c)
	}
	if dek, held := s.dek(b.HoldString(), []byte("envelope")); !held || string(dek) != "dek of b" {
		t.Errorf("%q, %t", dek, held)
	}
	if !s.wipeKey(a) || s.wipeKey(a) {
		t.Error("wipeKey says wrong what there was")
	}
	if _, held := s.dek(a.String(), []byte("envelope")); held || s.hasKeys(a, 5, 5) || !s.hasKeys(b, 5, 5) {
		t.Error("a is held, or b is not")
	}
	if !s.wipe() || s.hasKeys(b, 5, 5) || s.count(all).held != 0 {
		t.Error("something is held after a wipe")
	}
	s.put(b.String(), []byte("another"), []byte("dek"))
	if s.putKey(b, 5, &key); s.count(all).held != 0 || s.hasKeys(b, 5, 5) {
		t.Error("a wiped store takes secrets")
	}
	list, changed := s.changed()
	if _, again := s.changed(); !changed || again || len(list.Entries) != 4 {
		t.Errorf("%d entries, %t, %t", len(list.Entries), changed, again)
	}
}
