package hold

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// Where no page of memory can be locked nothing can be held, and the HSM is not asked for what cannot be kept.
func TestNoPage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		r.store.wipe()
		r.store.mu.Lock()
		r.store.page = nil
		r.store.mu.Unlock()
		for range 3 {
			r.write(t)
		}
		ring.slow(time.Millisecond)
		before, _ := ring.asked()
		at(5 * time.Minute)
		if after, _ := ring.asked(); after-before > 20 {
			t.Errorf("%d calls in five minutes", after-before)
		}
		if s := r.State(); s.Armed || s.Held != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A trail whose disk hangs keeps neither the request with which the hold begins nor Status, nor the wipe at the limit.
func TestTrailThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var hangs atomic.Bool
		r, a, dek := armed(t, func(c *Config) {
			record := c.Record
			c.Record = func(e Event) {
				if hangs.Load() {
					<-hang
				}
				record(e)
			}
		})
		defer r.stop()
		defer close(hang)
		hangs.Store(true)
		r.ring.slow(time.Hour)
		began := time.Now()
		r.mustRead(t, a, dek)
		if took := time.Since(began); took != Budget {
			t.Errorf("the first took %s", took)
		}
		r.mustStatus(t, r.id.String(), nil)
		at(61 * time.Minute)
		if s := r.State(); s.Holding || s.Held != 0 {
			t.Errorf("after the limit: %+v", s)
		}
	})
}

// DEKs for which the list had no room are forgotten once all that etcd has fits in it.
func TestRoomAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		r := start(t, ring, id, t.TempDir())
		forged := make([]holdfile.Entry, holdfile.MaxEntries)
		for i := range forged {
			forged[i] = holdfile.Entry{KeyID: id.String(), Envelope: envelope.Envelope{Profile: envelope.AESGCM,
				Unique: fmt.Appendf(nil, "%012d", i), Sealed: make([]byte, 48)}.Marshal()}
		}
		for _, e := range forged[1:] {
			r.store.list(e.KeyID, e.Envelope)
		}
		a, dek := r.write(t)
		r.store.list(forged[0].KeyID, forged[0].Envelope) // no room
		if s := r.State(); !s.Full {
			t.Fatalf("%+v", s)
		}
		at(time.Minute) // in which what does not open goes
		if err := holdfile.SaveSeed(r.dir, holdfile.Seed{ID: holdfile.NewID(), Entries: []holdfile.Entry{{KeyID: a.KeyID, Envelope: a.Bytes}}}); err != nil {
			t.Fatal(err)
		}
		at(2 * time.Second)
		if s := r.State(); !s.Armed || s.Full || s.Listed != 1 {
			t.Errorf("%+v", s)
		}
		r.mustRead(t, a, dek)
	})
}

// A request to drop stays until no list and no seed is left from which a restarted plugin would fill the hold again. The log says it once.
func TestDropThatIsNotComplete(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := armed(t)
		seed := filepath.Join(holdfile.Folder(r.dir), "seed.json")
		if err := os.MkdirAll(filepath.Join(seed, "not to be removed"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := holdfile.SaveDrop(r.dir, holdfile.Drop{ID: holdfile.NewID()}); err != nil {
			t.Fatal(err)
		}
		at(20 * time.Second)
		if s := r.State(); s.Held != 0 || s.Armed {
			t.Errorf("%+v", s)
		}
		if _, found, _ := holdfile.LoadDrop(r.dir); !found {
			t.Error("the request is gone")
		}
		r.mu.Lock()
		if n := bytes.Count(r.log.Bytes(), []byte("level=WARN")); n > 8 {
			t.Errorf("%d warnings:\n%s", n, r.log)
		}
		r.mu.Unlock()
		if err := os.RemoveAll(seed); err != nil {
			t.Fatal(err)
		}
		at(2 * time.Second)
		if _, found, _ := holdfile.LoadDrop(r.dir); found {
			t.Error("the request is still there")
		}
	})
}

// A read ring that was not read since the start may have the keys of listed DEKs: a hold that lacks them is not armed.
func TestReadRingThatWasNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := newRing(t)
		old := newKey(t, "old", time.Now().Add(-time.Hour))
		ring.also(old)
		r := start(t, ring, id, t.TempDir())
		r.write(t)
		a, err := ring.Seal(bg, old.ID, []byte("dek"))
		if err != nil {
			t.Fatal(err)
		}
		r.store.list(old.ID.String(), a)
		ring.mu.Lock()
		read := ring.read[0]
		ring.read[0] = envelope.View{Ring: "old"}
		ring.mu.Unlock()
		at(time.Minute)
		if s := r.State(); s.Armed || s.Held != 1 || s.Listed != 2 || len(s.Missing) != 1 {
			t.Errorf("%+v", s)
		}
		ring.mu.Lock()
		ring.read[0] = read
		ring.mu.Unlock()
		at(time.Minute)
		if s := r.State(); !s.Armed || s.Held != 2 || s.Listed != 2 {
			t.Errorf("%+v", s)
		}
	})
}
