//go:build !race

package testworker

// RaceEnabled reports whether the tests were built with the race detector.
const RaceEnabled = false
