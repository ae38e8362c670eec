package hsm

import "time"

// WithClock is c with another clock for the attempt guard.
func WithClock(c Config, now func() time.Time) Config {
	c.clock = now
	return c
}

// WithViewAge is c with another age at which views are compared.
func WithViewAge(c Config, age time.Duration) Config {
	c.viewAge = age
	return c
}
