// Package versions holds a ring of four hundred versions on a real token to its cost: what a start, a re-read, a probe and a
// Decrypt ask of the HSM must not grow with versions that nobody uses, or grow no faster than it has to. It has tests
// and benchmarks only. The tests count calls, so that a slow machine fails none; the benchmarks give the times.
package versions
