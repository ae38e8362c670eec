// Package hsm is the tokens: it makes of one or more PKCS#11 tokens the envelope.Tokens that the key ring
// works on, and keeps them usable through whatever a token does.
//
//	Set         several tokens: the first that is healthy and holds the key does the work
//	Token       one token: operations with a deadline, retries, and recovery in the background
//	generation  one connection of a token: slot, login, sessions and key handles, which live and die together
//	module      one loaded PKCS#11 library, which tokens may share: initialised, drained, finalised
//
// Its rules, each for a fault that was seen: no handle crosses a generation, because numbers are used again
// and can then name another key; one recovery at a time in a module; C_Finalize only when no call is in
// flight, because it crashes modules; a call cannot be cancelled, so it is abandoned with its session, which
// counts against maxSessions until it returns; a PIN that was refused is never tried again.
//
// Files: set, token (state), generation (one connection), operate (one operation), sessions and workers (what it is done
// with), supervise (recovery), look (is the connection sound?), reread (the ring, again), connect and keys (making a
// generation), module and flight (calls in flight), act and sight (what cannot be taken back, and what became of it),
// destroy, generate and binding, fault (what a CKR means), advice (what to do about it).
package hsm
