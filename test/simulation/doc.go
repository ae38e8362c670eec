// Package simulation runs several whole plugins, with simulated clocks and simulated tokens, through rotations, outages
// and mistakes, and holds them to what the ring's protocol promises. It has tests only, and what they are made of.
//
// Real are envelope.Ring, the plugin with its probe, its schedule and its service, gRPC, the AES-GCM under the keys, and
// the file that remembers the proven key. Simulated are time (testing/synctest: hours take milliseconds), each node's
// wall clock, the tokens, the way from each node to each token, the API server's polls, and the rules of `keys rotate` and
// `keys retire`, which this package repeats and the tests of the commands hold the commands to.
//
// # What is promised
//
//  1. Whatever a node seals, every node that lives can open at that moment.
//  2. Within a node, Encrypt seals under the key_id that Status gave last, and that key_id never goes back to an older one.
//  3. A key that is withdrawn has sealed nothing.
//  4. A node names a key that nobody has sealed under only if each of its tokens has it, or is absent and the grace is over, or
//     the key is an emergency key that a token has; and it does name it when that has been so for a while.
//  5. When everything is repaired, all nodes name the same key, the latest, and each opens all that was ever sealed.
//
// A node that has lost its file, and knows no key from before, needs all its tokens to begin; the others begin with one.
//
// A node lives while its plugin runs and one of its tokens answers it.
//
// # Under which assumptions
//
// Let S be the greatest difference between two clocks (of nodes, and of the machine on which a command runs), D what
// --activate-in said, and L how long after its making a key has been copied to every token that some node has.
//
//   - Promises 1 and 2 rest on L < D - S: copies arrive before the fastest clock makes the key current.
//   - Promise 3 rests on S < M, M = max(5 min, 2 x refreshInterval): a pending key is withdrawn only while the clock of the
//     command says that its activation is M or more away. The command names every token that holds the key.
//   - Promise 4 rests on no assumption. It makes nodes with equal tokens equal: neither half knows what a node remembers.
//   - Promise 5 rests on promise 3 alone: nothing is lost but what was sealed under a key that was then destroyed.
//   - A node's clock that is behind, by any amount, harms none of them: the node stays with the predecessor until it is told
//     better by its clock, by a Decrypt under the newer key, or by the file that it keeps. The clock of a command must not be
//     behind by M or more: to it a key that is in use looks pending.
//
// Refreshes may fail and be late, ways to tokens come and go, plugins restart with and without their file, at any time.
//
// # What is promised of outage holds
//
// The tests named Hold run nodes with the real hold.Hold, each with the clocks of its own machine, through outages, brown-outs,
// suspended machines, restarts of plugins and API servers, and rotations.
//
//  1. What a node writes on hold, every node opens whose Status is ok: with the HSM, or on its own hold, on any day.
//  2. What a node writes with the HSM, or on hold under a key that another node has not read before its own hold, that node opens if
//     it has seen it before; otherwise its Status is not ok from then on.
//  3. A node that is armed when its HSM goes away, and says ok, answers every request within the API server's time-out; its API
//     server can restart.
//  4. Encrypt answers under the key_id that Status gave last, except once when a hold begins and when it ends.
//  5. A node is on hold for at most outageHold within seven days, suspended time included, whatever restarts.
//  6. What was dropped, is under a key that is gone, or was held when the PIN was refused, is not opened any more.
//  7. No key becomes current on hold; a hold ends after some good time of the HSM only; and then all nodes name the same key.
//
// Clocks may be off by half a day. TestHoldVariants switches off one rule of the hold after the other, by building it again with
// another line, and wants the tests to find out.
//
// # What happens outside
//
// A node whose tokens lack a due key defers it: it stays with the predecessor and says so. What others seal under the key
// it answers with NotFound and the names of both keys, until the copy arrives; nothing is lost. A node whose clock runs
// ahead by more than D - L makes others that lack the key say NotFound in the same way, and those that have it follow
// it to the new key. The tests named Outside show it.
package simulation
