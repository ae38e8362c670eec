package audit

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// filesOf are the trail's files, in the order of their names.
func filesOf(t testing.TB, path string) []string {
	t.Helper()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func small(o *Options) { o.MaxBytes = 8 << 10 }

func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	path := trail(t)
	const writers, each = 8, 100
	for range 2 {
		w := open(t, path, small)
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				for n := range each {
					if err := w.Record(context.Background(), sample(i*each+n)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		closeIt(t, w)
	}
	files := filesOf(t, path)
	slices.Reverse(files) // any order will do
	r := verify(t, files...)
	wantOK(t, r)
	if r.Operations != 2*writers*each || r.Recoveries != 0 || len(files) < 50 {
		t.Errorf("%d files: %s", len(files), show(r))
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 9<<10 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %d bytes, mode %v, %v", f, info.Size(), info.Mode(), err)
		}
	}
	slices.Reverse(files) // audit.log, then the rotated ones in order
	rotatedBy(t, files[1], rotatedBySize)
	if r := verify(t, files[1]); !r.OK || r.End != EndRotated {
		t.Errorf("a rotated file alone: %s", show(r))
	}
	if r := verify(t, slices.Delete(slices.Clone(files), 7, 8)...); r.OK || *r.FirstBad != 1 || r.File != files[8] {
		t.Errorf("one file missing: %s", show(r))
	}
	if r := verify(t, append(files, files[3])...); r.OK {
		t.Errorf("one file twice: %s", show(r))
	}
}

// rotatedBy checks which mechanism the last record of a file names.
func rotatedBy(t *testing.T, path, mechanism string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), `"operation":"audit.rotated","cause":"`+mechanism+`"`) {
		t.Errorf("%s does not say that it was rotated by %s: %v\n%s", path, mechanism, err, text)
	}
}

// TestRotationThatCannotBe goes on in the file that there is.
func TestRotationThatCannotBe(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path, small)
	if err := os.Rename(path, path+".1"); err != nil { // and no Reopen: the path is not ours to rename
		t.Fatal(err)
	}
	record(t, w, 1, 100)
	if s := w.Stats(); s.Failures != 1 || s.Lost != 0 || s.Failing {
		t.Errorf("%+v", s)
	}
	closeIt(t, w)
	r := verify(t, path+".1")
	wantOK(t, r)
	if r.Operations != 100 {
		t.Error(show(r))
	}
}

func TestReopen(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 2)
	if err := w.Reopen(); err != nil { // nothing was renamed
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	record(t, w, 3, 3) // still into the renamed file
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	record(t, w, 4, 4)

	// A file of another's making is not appended to, and the old one goes on.
	if err := errors.Join(os.Rename(path, path+".2"), os.WriteFile(path, []byte("mine\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err == nil {
		t.Error("a file that holds something was adopted")
	}
	record(t, w, 5, 5)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// logrotate's create makes the file first.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Reopen(); err != nil {
		t.Fatal(err)
	}
	closeIt(t, w)
	rotatedBy(t, path+".1", rotatedByHangup)
	r := verify(t, filesOf(t, path)...)
	wantOK(t, r)
	if r.Operations != 5 || r.Recoveries != 0 || len(filesOf(t, path)) != 3 {
		t.Error(show(r))
	}
}

// TestRenamedWhileStopped: the chain goes on from the newest file that was renamed.
func TestRenamedWhileStopped(t *testing.T) {
	t.Parallel()
	path := trail(t)
	for _, suffix := range []string{".2", ".1", "-20260203"} {
		closeIt(t, open(t, path))
		if err := os.Rename(path, path+suffix); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path+".3", []byte("of somebody else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	closeIt(t, open(t, path))
	r := verify(t, path+".2", path+".1", path+"-20260203", path)
	wantOK(t, r)
	if r.LastSequence != 8 {
		t.Error(show(r))
	}
}

func TestCopyTruncate(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	for i := range 3 {
		record(t, w, 1, 5)
		copyFile(t, path, path+"."+string(rune('1'+i)))
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	record(t, w, 6, 6)
	closeIt(t, w)
	r := verify(t, filesOf(t, path)...)
	wantOK(t, r)
	if r.Operations != 16 || r.Recoveries != 3 {
		t.Error(show(r))
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSiblings(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"audit.log": false, "audit.log.1": true, "audit.log.000000000012": true, "audit.log-20260203": true,
		"audit.log.1.gz": false, "audit.log.": false, "audit.log1": false, "audit-etcd-get.log": false, "other.log.1": false,
	} {
		if got := isSibling(name, "audit.log"); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := Beside("/var/log/audit.log", "x"); !strings.HasSuffix(got, "/audit-x.log") {
		t.Error(got)
	}
}
