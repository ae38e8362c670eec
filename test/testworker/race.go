//go:build race

package testworker

import "C" // race.c

// RaceEnabled reports whether the tests were built with the race detector.
const RaceEnabled = true
