package audit

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestTornAtEveryByte: a crash may leave any part of the last record.
func TestTornAtEveryByte(t *testing.T) {
	if testing.Short() {
		t.Skip("make test runs it")
	}
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 2)
	crash(w)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := last; cut <= len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		w := open(t, path)
		record(t, w, 3, 3)
		closeIt(t, w)
		r := verify(t, path)
		if !r.OK || r.Recoveries != 1 {
			t.Fatalf("cut at %d of %d: %s", cut-last, len(whole)-last, show(r))
		}
		if after, _ := os.ReadFile(path); !bytes.HasPrefix(after, whole[:cut]) {
			t.Fatalf("cut at %d: what was torn was not kept", cut-last)
		}
	}
}

func TestTornFirstRecord(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"part":    `{"time":"2026-02-03T04:`,
		"a byte":  `{`,
		"newline": "",
		"zeros":   strings.Repeat("\x00", 4096),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := trail(t)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			closeIt(t, open(t, path))
			wantOK(t, verify(t, path))
		})
	}
}

// TestTornAgain: the recovery record itself is torn, any number of times.
func TestTornAgain(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 2)
	crash(w)
	for range 5 {
		crash(open(t, path))
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, info.Size()-50); err != nil {
			t.Fatal(err)
		}
	}
	closeIt(t, open(t, path))
	r := verify(t, path)
	wantOK(t, r)
	if r.Recoveries != 1 || r.Records != 3+1+1 {
		t.Error(show(r))
	}
	// The cover is exact: another byte in what was torn is found.
	lines := readLines(t, path)
	lines[4] = strings.Replace(lines[4], "audit", "Audit", 1)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, path); r.OK || *r.FirstBad != 4 {
		t.Error(show(r))
	}
}

// TestGarbageOfAPowerLoss: blocks of zeros after the last record, more than the first window of the search.
func TestGarbageOfAPowerLoss(t *testing.T) {
	t.Parallel()
	path := trail(t)
	w := open(t, path)
	record(t, w, 1, 2)
	crash(w)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(append(make([]byte, 300<<10), "x\n\nyy\n"...)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	closeIt(t, open(t, path))
	r := verify(t, path)
	wantOK(t, r)
	if r.Recoveries != 1 || r.Operations != 2 {
		t.Error(show(r))
	}
}

// FuzzRecovery: whatever a crash leaves after whole records, the writer goes on and the chain holds; and what
// is no trail is not touched.
func FuzzRecovery(f *testing.F) {
	path := trail(f)
	w := open(f, path)
	record(f, w, 1, 2)
	crash(w)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(len(whole)), []byte("\n\n"))
	f.Add(uint16(700), []byte{0, 0})
	f.Add(uint16(0), []byte("{\"time\":\"\n"))
	f.Add(uint16(len(whole)-1), []byte("}"))
	f.Fuzz(func(t *testing.T, keep uint16, garbage []byte) {
		path := trail(t)
		content := append(bytes.Clone(whole[:min(int(keep), len(whole))]), garbage...)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := Open(Options{Path: path, Required: true})
		if err != nil {
			if after, _ := os.ReadFile(path); !bytes.Equal(after, content) {
				t.Fatalf("refused and changed: %v", err)
			}
			return
		}
		record(t, w, 3, 3)
		closeIt(t, w)
		if r := verify(t, path); !r.OK {
			t.Fatalf("%q: %s", content, show(r))
		}
	})
}

// TestKilled: a process is killed in the middle of its writing, again and again, with rotations in between.
func TestKilled(t *testing.T) {
	if path := os.Getenv("AUDIT_TEST_WRITE"); path != "" {
		w := open(t, path, func(o *Options) { o.MaxBytes = 64 << 10 })
		_, _ = os.Stdout.WriteString("writing\n")
		for n := 1; ; n++ {
			record(t, w, n, n)
		}
	}
	t.Parallel()
	path := trail(t)
	for i := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "AUDIT_TEST_WRITE="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "writing\n" {
			t.Errorf("the writer said %q, %v", line, err)
		}
		time.Sleep(time.Duration(1+3*i) * time.Millisecond) // not a wait: another point of its work each time
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	}
	w := open(t, path)
	files := filesOf(t, path)
	r := verify(t, files...)
	wantOK(t, r)
	if r.Recoveries != 8 || r.FirstSequence != 1 {
		t.Error(show(r))
	}
	closeIt(t, w)
	wantOK(t, verify(t, files...))
}
