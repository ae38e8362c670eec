// Package capacity is the arithmetic of what is asked of an HSM and what it can do: calls for each operation, sessions for
// a rate at a latency, waiting in a queue, what a control plane asks in a day, a fleet that starts at once. Only formulas
// may live here: no token, no clock, no output. test/simulation/capacity holds them to a simulation.
//
// A call is one PKCS#11 function call: one round trip where the HSM is behind a network. A seal or an open is two of them.
//
// Everything here is a pure function of its arguments.
package capacity
