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
// # What happens outside
//
// A node whose tokens lack a due key defers it: it stays with the predecessor and says so. What others seal under the key
// it answers with NotFound and the names of both keys, until the copy arrives; nothing is lost. A node whose clock runs
// ahead by more than D - L makes others that lack the key say NotFound in the same way, and those that have it follow
// it to the new key. The tests named Outside show it.
package simulation
