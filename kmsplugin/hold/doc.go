// Package hold lets API servers restart, read and write while the HSM is away, for a bounded time (FORMAT.md, "Hold keys" and "Holds").
// While the HSM answers, every request is an HSM operation. When it is away, requests are answered from what this process
// has seen: DEKs that it opened or sealed, and hold keys that were derived in the HSM, one for each key of the ring and day.
//
// The hold is armed only while every listed DEK is held. It begins with the request or the probe that fails because the HSM
// is away, and ends after five good probes within 30 s, each operation below half of callTimeout. An HSM that answers and has the
// key no more, that works wrongly or that refuses the PIN is not away: what is held is wiped at once.
//
//	page.go     one locked page of memory: the process key, which seals what is held
//	store.go    the list of wrapped DEKs, and what is held of it
//	ledger.go   how long this node was on hold in the last seven days; ledgerfile.go: its file
//	machine.go  when the hold begins and ends; no clock, file or HSM of its own
//	hold.go     the parts put together; what requests ask
//	probe.go    what health asks: what a probe means for the hold, and the hold for Status
//	tend.go     what runs beside: limits and files, and whether it is armed
//	work.go     what runs beside with the HSM, while it is there: hold keys, listed DEKs, proofs of older keys
//
// It depends on envelope, on health and problem, on holdfile for the files that commands share, and on atomicfile and hint.
// Hold documents its locks.
package hold
