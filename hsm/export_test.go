package hsm

import "time"

// WithClock is c with another clock for the attempt guard.
func WithClock(c Config, now func() time.Time) Config {
	c.clock = now
	return c
}
