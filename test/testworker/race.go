//go:build race

package testworker

import "C" // race.c

const raceEnabled = true
