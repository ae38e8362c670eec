package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Colours are for a terminal alone, and not where NO_COLOR is set. A cell is longer by as much in every colour.
func TestColours(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	_, tty := terminal(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if !isColoured(tty) || isColoured(file) || isColoured(&bytes.Buffer{}) {
		t.Errorf("a terminal %t, a file %t, a buffer %t", isColoured(tty), isColoured(file), isColoured(&bytes.Buffer{}))
	}
	t.Setenv("NO_COLOR", "1")
	if isColoured(tty) {
		t.Error("NO_COLOR has no effect")
	}
	if len(painted(true, red, "FAIL")) != len(painted(true, usual, "PASS")) || painted(false, red, "FAIL") != "FAIL" {
		t.Error("cells differ in length")
	}
}
