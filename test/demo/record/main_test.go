package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRecording(t *testing.T) {
	t.Parallel()
	clock := time.Unix(0, 0)
	tick := func() time.Time { clock = clock.Add(time.Minute); return clock }
	moments, err := collect(strings.NewReader("\n1. A step <of> the demo & more\n   in /tmp/hsm-kms-demo-12345/x\n"+strings.Repeat("y", 200)+"\x1b[0m\n"), tick)
	if err != nil || len(moments) != 4 {
		t.Fatalf("%v, %v", moments, err)
	}
	picture := render(moments)
	wellFormed(t, picture)
	for _, part := range []string{
		`class="step">1. A step &lt;of&gt; the demo &amp; more<`, ">   in /tmp/hsm-kms-demo/x<", strings.Repeat("y", columns-1) + "…<",
		"animation: run 14.00s", // four pauses of a minute are 1.5 s each, and the end
	} {
		if !strings.Contains(picture, part) {
			t.Errorf("there is no %s in\n%s", part, picture)
		}
	}
}

// The recording in the documents is one of a whole run.
func TestRecordingOfTheDocuments(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/demo.svg")
	if err != nil {
		t.Fatal(err)
	}
	wellFormed(t, string(text))
	for _, part := range []string{">1. ", "hsm-kms keys create", "Done. What was shown:", "no process and no file is left behind"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("docs/demo.svg has no %q: make recording", part)
		}
	}
}

func wellFormed(t *testing.T, picture string) {
	t.Helper()
	decoder := xml.NewDecoder(strings.NewReader(picture))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
}
