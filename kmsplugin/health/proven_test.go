package health

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/envelope"
)

func TestProvenFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, id := ringOf(t)
	want := Proven{Key: id, At: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)}
	if err := saveProven(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := LoadProven(dir, "ring")
	if err != nil || got.Key != want.Key || !got.At.Equal(want.At) {
		t.Errorf("LoadProven = %v, %v; want %v", got, err, want)
	}
	if got, err := LoadProven(dir, "other"); err != nil || !got.Key.IsZero() {
		t.Errorf("another ring's file: %v, %v", got, err)
	}
	info, err := os.Stat(filepath.Join(dir, ProvenFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v, %v", entries, err)
	}
}

// When another ring is written under, what was proven of the one before is set aside, and found again on the way back, also when
// the process died in between.
func TestProvenOfAnotherRing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, id := ringOf(t)
	next := id
	next.Ring = "next"
	at := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	old, new, back := Proven{Key: id, At: at}, Proven{Key: next, At: at.Add(time.Hour)}, Proven{Key: id, At: at.Add(2 * time.Hour)}
	for _, step := range []struct {
		save, loaded, other Proven
	}{{old, old, Proven{}}, {new, new, old}, {back, back, new}, {new, new, back}} {
		if err := saveProven(dir, step.save); err != nil {
			t.Fatal(err)
		}
		got, err := LoadProven(dir, step.save.Key.Ring)
		if err != nil || got.Key != step.loaded.Key || !got.At.Equal(step.loaded.At) {
			t.Errorf("LoadProven = %v, %v; want %v", got, err, step.loaded)
		}
		if last, err := LastProven(dir); err != nil || last.Key != step.save.Key {
			t.Errorf("LastProven = %v, %v; want %v", last, err, step.save)
		}
		other := map[string]string{"ring": "next", "next": "ring"}[step.save.Key.Ring]
		if got, err := LoadProven(dir, other); err != nil || got.Key != step.other.Key || !got.At.Equal(step.other.At) {
			t.Errorf("LoadProven of the other ring = %v, %v; want %v", got, err, step.other)
		}
	}
}

func TestProvenFileNotToBeBelieved(t *testing.T) {
	t.Parallel()
	_, id := ringOf(t)
	text := map[string]string{
		"empty":         "",
		"torn":          `{"keyID":"` + id.String()[:20],
		"two values":    `{"keyID":"` + id.String() + `","provenAt":"2031-05-06T07:08:09Z"}{}`,
		"unknown field": `{"keyID":"` + id.String() + `","provenAt":"2031-05-06T07:08:09Z","x":1}`,
		"not a key_id":  `{"keyID":"ring/x/y","provenAt":"2031-05-06T07:08:09Z"}`,
		"no time":       `{"keyID":"` + id.String() + `","provenAt":"today"}`,
		"too long":      `{"keyID":"` + id.String() + `"` + strings.Repeat(" ", maxProvenFile) + `}`,
	}
	for name, content := range text {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, ProvenFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := LoadProven(dir, "ring"); err == nil || !got.Key.IsZero() {
				t.Errorf("LoadProven = %v, %v; want an error and no key", got, err)
			}
		})
	}
	t.Run("link", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := saveProven(dir, Proven{Key: id}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, ProvenFile)
		if err := os.Rename(path, path+"2"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path+"2", path); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadProven(dir, "ring"); err == nil {
			t.Errorf("a link was followed: %v", got)
		}
	})
	t.Run("fifo", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := unix.Mkfifo(filepath.Join(dir, ProvenFile), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadProven(dir, "ring"); err == nil {
			t.Errorf("a FIFO was believed: %v", got)
		}
	})
	t.Run("absent", func(t *testing.T) {
		t.Parallel()
		if got, err := LoadProven(t.TempDir(), "ring"); err != nil || !got.Key.IsZero() {
			t.Errorf("LoadProven = %v, %v", got, err)
		}
	})
}

// The file is written when the key changes, and else once a minute at most.
func TestProvenFileIsSeldomWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ring, _ := ringOf(t)
		h := start(t, Config{Ring: ring, StateDir: dir, ProbeInterval: time.Second})
		writes, last := 0, int64(0)
		for range 300 {
			at(time.Second)
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, ProvenFile), &st); err != nil {
				t.Fatal(err)
			}
			if n := st.Ctim.Nano(); n != last {
				writes, last = writes+1, n
			}
		}
		if writes < 4 || writes > 6 {
			t.Errorf("%d writes in five minutes", writes)
		}
		next := version(t, time.Now(), envelope.Current)
		ring.set(func(r *fakeRing) { r.view = envelope.View{Versions: []envelope.Version{next}, Current: &next} })
		at(time.Second)
		mustReport(t, h, next.ID, nil)
		if got, _ := LoadProven(dir, "ring"); got.Key != next.ID {
			t.Errorf("a new key was not written at once: %v", got.Key)
		}
	})
}

// A folder that cannot be written to is said once, and changes nothing else.
func TestProvenFileCannotBeWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		logs := &logBuffer{}
		h := start(t, Config{Ring: ring, StateDir: filepath.Join(t.TempDir(), "absent"), Logger: logs.logger()})
		at(time.Hour)
		mustReport(t, h, id, nil)
		if all := strings.Join(logs.lines(), ""); strings.Count(all, "cannot be kept") != 1 {
			t.Errorf("want one line:\n%s", all)
		}
	})
}

// A disk of stateDir that hangs stops neither the probe nor what Status is told.
func TestProvenFileThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ring, id := ringOf(t)
		release := make(chan struct{})
		h := New(Config{Ring: ring, StateDir: "/hangs", ProbeInterval: time.Second})
		h.save = func(string, Proven) error { <-release; return nil }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); h.Run(ctx) }()
		at(time.Hour)
		mustReport(t, h, id, nil)
		if err := h.Turning(); err != nil {
			t.Error(err)
		}
		cancel()
		close(release)
		<-done
	})
}
