//go:build race

package testworker

const raceEnabled = true
