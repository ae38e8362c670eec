package main

import (
	"errors"
	"testing"
)

func TestOneChangeOfTheRingAtATime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := lockKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockKeys(dir); !errors.Is(err, errFinding) {
		t.Errorf("the second: %v", err)
	}
	unlock()
	again, err := lockKeys(dir)
	if err != nil {
		t.Fatalf("after the first: %v", err)
	}
	again()
}
