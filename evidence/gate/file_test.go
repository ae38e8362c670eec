package gate_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/evidence"
	"github.com/hsm-kms/hsm-kms/evidence/gate"
)

func write(t *testing.T, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func encoded(t *testing.T, r any) []byte {
	t.Helper()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestLoad(t *testing.T) {
	t.Parallel()
	file, err := gate.Load(write(t, encoded(t, clean(at(1), 100))))
	if err != nil {
		t.Fatal(err)
	}
	if !file.Time.Equal(at(1)) || len(file.SHA256) != 64 || file.Report.Objects != 12 {
		t.Errorf("loaded %+v", file)
	}
}

// Nothing but a whole report of a live etcd is evidence.
func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	without := func(t *testing.T, field string) []byte {
		var fields map[string]any
		if err := json.Unmarshal(encoded(t, clean(at(1), 100)), &fields); err != nil {
			t.Fatal(err)
		}
		delete(fields, field)
		return encoded(t, fields)
	}
	changed := func(change func(*evidence.Report)) func(*testing.T) []byte {
		return func(t *testing.T) []byte {
			r := clean(at(1), 100)
			change(r)
			return encoded(t, r)
		}
	}
	for name, test := range map[string]struct {
		text func(*testing.T) []byte
		want string
	}{
		"nothing":            {func(*testing.T) []byte { return nil }, "not one JSON object"},
		"a table":            {func(*testing.T) []byte { return []byte("http://etcd at revision 4\n") }, "not one JSON object"},
		"a list":             {func(*testing.T) []byte { return []byte("[]") }, "not one JSON object"},
		"cut short":          {func(t *testing.T) []byte { text := encoded(t, clean(at(1), 100)); return text[:len(text)/2] }, "not one JSON object"},
		"two reports":        {func(t *testing.T) []byte { text := encoded(t, clean(at(1), 100)); return append(text, text...) }, "not one JSON object"},
		"an older version's": {func(t *testing.T) []byte { return without(t, "restricted") }, `no "restricted"`},
		"without sources":    {func(t *testing.T) []byte { return without(t, "sources") }, `no "sources"`},
		"an older version's sources": {func(t *testing.T) []byte {
			return []byte(strings.Replace(string(encoded(t, clean(at(1), 100))), `"unreadable": [],`, "", 1))
		}, `a source of it has no "unreadable"`},
		"an older version's clusters": {changed(func(r *evidence.Report) { r.Sources[0].ClusterUIDs = nil }), `no "clusterUIDs"`},
		"null resources":              {changed(func(r *evidence.Report) { r.Resources = nil }), `no "resources"`},
		"a field too many": {func(t *testing.T) []byte {
			return []byte(strings.Replace(string(encoded(t, clean(at(1), 100))), "{", `{"more": 1,`, 1))
		}, "more"},
		"another type": {func(t *testing.T) []byte {
			return []byte(strings.Replace(string(encoded(t, clean(at(1), 100))), `"objects": 12`, `"objects": "12"`, 1))
		}, "cannot unmarshal"},
		"no time":               {changed(func(r *evidence.Report) { r.Time = "yesterday" }), "its time"},
		"no source":             {changed(func(r *evidence.Report) { r.Sources = []evidence.Reading{} }), "names no source"},
		"a snapshot's":          {changed(func(r *evidence.Report) { r.Sources = snapshot().Sources }), "not a live etcd"},
		"a snapshot's, no hash": {changed(func(r *evidence.Report) { r.Sources[0].Cluster = "" }), "not a live etcd"},
		"half a snapshot's":     {changed(func(r *evidence.Report) { r.Sources = append(r.Sources, snapshot().Sources...) }), "not a live etcd"},
		"with a history":        {changed(func(r *evidence.Report) { r.History = snapshot().History }), "older revisions"},
		"no prefixes":           {changed(func(r *evidence.Report) { r.Sources[0].Prefixes = nil }), "no prefixes"},
		"no revision":           {changed(func(r *evidence.Report) { r.Revision, r.Sources[0].Revision = 0, 0 }), "no revision"},
		"another's revision":    {changed(func(r *evidence.Report) { r.Revision = 7 }), "not that of its first source"},
		"a resource was cut":    {changed(func(r *evidence.Report) { r.Resources = r.Resources[:1] }), "do not agree"},
		"a key was cut":         {changed(func(r *evidence.Report) { r.Resources[1].Keys = nil }), "do not agree"},
		"a negative count":      {changed(func(r *evidence.Report) { r.Resources[1].Keys[0].Objects = -1 }), "do not agree"},
		"undecodable was cut":   {changed(func(r *evidence.Report) { r.Undecodable = 1 }), "do not agree"},
	} {
		_, err := gate.Load(write(t, test.text(t)))
		if !errors.Is(err, gate.ErrNotEvidence) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// A file that is too large is not read.
func TestLoadTooLarge(t *testing.T) {
	t.Parallel()
	path := write(t, encoded(t, clean(at(1), 100)))
	for _, size := range []int64{32<<20 + 1, 1 << 40} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if _, err := gate.Load(path); !errors.Is(err, gate.ErrNotEvidence) || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A file that cannot be read is another matter than one that is no evidence.
func TestLoadCannotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "none.json"), dir, fifo} {
		if _, err := gate.Load(path); err == nil || errors.Is(err, gate.ErrNotEvidence) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := gate.Load(filepath.Join(dir, "none.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
