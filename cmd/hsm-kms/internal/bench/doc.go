// Package bench measures what one token does through the code that the plugin runs: seals and opens under a ring's key, as
// fast as it answers, by so many clients for so long. It is made for an HSM in production: what it seals are DEKs that it
// throws away, how many is bounded (SealBudget), and it ends within one operation of being told so.
//
// It depends on envelope and internal/load. A Counter is safe for concurrent use; a Plan is run by one goroutine at a time.
package bench
