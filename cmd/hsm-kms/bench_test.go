package main

import "testing"

func TestNumbersForPeople(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 0.0004: "less than 0.001", 0.0214: "0.021", 0.4: "0.4", 1: "1", 1.5: "1.5", 9.999: "10", 10: "10", 10.04: "10", 12.34: "12.3",
		99.96: "100", 100: "100", 1234.5: "1,235", 28485: "28,485",
	} {
		if got := threePlaces(v); got != want {
			t.Errorf("%v is shown as %s, want %s", v, got, want)
		}
	}
}
