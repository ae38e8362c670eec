// Package capacity holds the formulas of internal/capacity, and with them the calculation of docs/performance.md, to a
// simulation of an HSM and of those who ask it: discrete events, no real time, the same for the same seed. What may live
// here: the simulation, the comparison, and the count of the calls that the program really makes.
package capacity
