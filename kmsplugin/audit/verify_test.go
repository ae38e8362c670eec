package audit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// finished writes a trail of started, n records and ended, and returns its lines.
func finished(t testing.TB, path string, n int) []string {
	t.Helper()
	w := open(t, path)
	record(t, w, 1, n)
	closeIt(t, w)
	return readLines(t, path)
}

// swapped is a copy of lines with two of them in each other's place.
func swapped(lines []string, i, j int) []string {
	c := slices.Clone(lines)
	c[i], c[j] = c[j], c[i]
	return c
}

func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	lines := finished(t, trail(t), 6) // 8 lines
	other := finished(t, trail(t), 6)
	without := func(i int) []string { return slices.Delete(slices.Clone(lines), i-1, i) }
	with := func(i int, line string) []string { return slices.Insert(slices.Clone(lines), i-1, line) }
	replace := func(i int, line string) []string {
		c := slices.Clone(lines)
		c[i-1] = line
		return c
	}
	edit := func(i int, from, to string) []string {
		if !strings.Contains(lines[i-1], from) {
			t.Fatalf("line %d has no %q", i, from)
		}
		return replace(i, strings.Replace(lines[i-1], from, to, 1))
	}
	swap := func(i, j int) []string { return swapped(lines, i-1, j-1) }
	for name, tc := range map[string]struct {
		lines  []string
		bad    int
		reason string
	}{
		"one byte changed":            {edit(4, `"OK"`, `"OL"`), 4, "changed"},
		"the first changed":           {edit(1, `"sequence":1`, `"sequence":9`), 1, "changed"},
		"the last changed":            {edit(8, `audit.ended`, `audit.endet`), 8, "changed"},
		"hash in upper case":          {replace(5, lines[4][:len(lines[4])-60]+strings.ToUpper(lines[4][len(lines[4])-60:])), 5, ""},
		"one removed":                 {without(4), 4, "from 3 to 5"},
		"two removed":                 {slices.Delete(slices.Clone(lines), 2, 4), 3, "from 2 to 5"},
		"the first removed":           {without(1), 1, "lines before it were removed"},
		"one twice":                   {with(5, lines[3]), 5, "from 4 to 4"},
		"an old one again":            {with(7, lines[1]), 7, "from 6 to 2"},
		"one added":                   {with(4, "{}\n"), 4, "added"},
		"an empty line":               {with(4, "\n"), 4, "added"},
		"a long line":                 {with(4, strings.Repeat("x", 5*maxLine)+"\n"), 4, "added"},
		"neighbours swapped":          {swap(4, 5), 4, "from 3 to 5"},
		"far ones swapped":            {swap(3, 7), 3, "from 2 to 7"},
		"one of another chain":        {replace(4, other[3]), 4, "replaced"},
		"joined files":                {append(slices.Clone(lines), other...), 9, "begins a file"},
		"end record removed":          {without(8), 8, "no end record"},
		"cut between records":         {lines[:5], 6, "no end record"},
		"cut in a record":             {append(slices.Clone(lines[:5]), lines[5][:40]), 6, "cut off"},
		"last newline removed":        {append(slices.Clone(lines[:7]), strings.TrimSuffix(lines[7], "\n")), 8, "cut off"},
		"everything cut":              {nil, 1, "no record"},
		"newline instead of a record": {[]string{"\n"}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := trail(t)
			if err := os.WriteFile(path, []byte(strings.Join(tc.lines, "")), 0o600); err != nil {
				t.Fatal(err)
			}
			r := verify(t, path)
			if r.OK || r.FirstBad == nil || *r.FirstBad != tc.bad || !strings.Contains(r.Reason, tc.reason) || r.File != path {
				t.Errorf("want line %d and %q: %s", tc.bad, tc.reason, show(r))
			}
		})
	}
}

func TestVerifyNamesTheFirstOfSeveral(t *testing.T) {
	t.Parallel()
	path := trail(t)
	lines := finished(t, path, 9)
	lines[2], lines[7] = "x\n", "y\n"
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, path); r.FirstBad == nil || *r.FirstBad != 3 || r.Records != 9 {
		t.Error(show(r))
	}
}

func TestVerifyOfALiveTrail(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 3)
	r := verify(t, path)
	wantOK(t, r)
	if r.End != EndLive || r.Records != 4 {
		t.Error(show(r))
	}
	record(t, w, 4, 4) // the check did not take the lock away
	crash(w)
	if r := verify(t, path); r.OK || r.End != EndNone {
		t.Error(show(r))
	}
}

// TestAnchor: what the file alone cannot show, a hash that was kept elsewhere does.
func TestAnchor(t *testing.T) {
	t.Parallel()
	path := trail(t)
	finished(t, path, 3)
	anchor := verify(t, path).LastHash
	w := open(t, path)
	record(t, w, 1, 3)
	closeIt(t, w)
	if r, err := Verify(anchor, path); err != nil || !r.OK {
		t.Fatalf("%v %s", err, show(r))
	}
	// The end is cut off, and the plugin starts again: a recovery record, and a chain that holds.
	if err := os.WriteFile(path, []byte(strings.Join(readLines(t, path)[:3], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	closeIt(t, open(t, path))
	r := verify(t, path)
	wantOK(t, r)
	if r.Recoveries != 1 {
		t.Error(show(r))
	}
	r, err := Verify(anchor, path)
	if err != nil || r.OK || !strings.Contains(r.Reason, "no record has the hash") {
		t.Errorf("%v %s", err, show(r))
	}
}

func TestVerifyCannotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, paths := range [][]string{nil, {filepath.Join(dir, "absent")}, {dir}} {
		if r, err := Verify("", paths...); err == nil {
			t.Errorf("%q: no error: %s", paths, show(r))
		}
	}
}

// FuzzVerify: whatever is done to one byte or one line of a finished trail shows.
func FuzzVerify(f *testing.F) {
	path := trail(f)
	lines := finished(f, path, 5)
	whole := []byte(strings.Join(lines, ""))
	f.Add(uint8(0), uint16(100), uint16(3))
	f.Add(uint8(1), uint16(2), uint16(3))
	f.Add(uint8(2), uint16(2), uint16(4))
	f.Add(uint8(3), uint16(300), uint16(0))
	f.Add(uint8(4), uint16(300), uint16('\n'))
	f.Fuzz(func(t *testing.T, kind uint8, a, b uint16) {
		changed := slices.Clone(whole)
		i, j := int(a)%len(lines), int(b)%len(lines)
		at := int(a) % len(whole)
		switch kind % 5 {
		case 0: // a byte changed
			if b%256 == 0 {
				return
			}
			changed[at] ^= byte(b)
		case 1: // lines swapped
			if i == j {
				return
			}
			changed = []byte(strings.Join(swapped(lines, i, j), ""))
		case 2: // a line repeated elsewhere
			changed = []byte(strings.Join(slices.Insert(slices.Clone(lines), i, lines[j]), ""))
		case 3: // cut
			changed = changed[:at]
		case 4: // a byte added
			changed = slices.Insert(changed, at, byte(b))
		}
		path := trail(t)
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, path); r.OK {
			t.Fatalf("kind %d at %d, %d passed: %s", kind%5, a, b, show(r))
		}
	})
}
