package main

import "testing"

func TestBarLine(t *testing.T) {
	t.Parallel()
	for want, c := range map[string][2]int64{
		"reading [..............................]   0% of 1,000":  {0, 1000},
		"reading [###############...............]  50% of 10,000": {5000, 10000},
		"reading [##############################] 100% of 7":      {9, 7},
		"reading: 1,234,567": {1234567, 0},
	} {
		if got := barLine("reading", c[0], c[1]); got != want {
			t.Errorf("barLine(%v) = %q, want %q", c, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1000: "-1,000", -100: "-100", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) = %q, want %q", n, got, want)
		}
	}
}
