// Package bench measures what one token does through the code that the plugin runs: seals and opens under a ring's key, as
// fast as it answers, by so many clients for so long. It is made for an HSM in production: what it seals are DEKs that it
// throws away, how many is bounded (SealBudget), and it ends within one operation of being told so. What may live here: the plan, the
// counting, and the rows that come of it; no flags, no output.
package bench
