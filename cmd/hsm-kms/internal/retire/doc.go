// Package retire decides whether a key of the ring may be destroyed, makes a plan of it, and carries exactly that plan
// out. [Run] is the whole of it. [Judge] is pure: the [Facts] that Run gathers go in, a [Plan] with everything that speaks
// against it comes out. [Plan.Execute] asks for one thing to be destroyed and says what became of it on each token.
//
// It depends on app for the tokens, the lock and the findings, on config, envelope, hsm, evidence and evidence/gate, on
// kmsplugin and its parts audit, health and socket, and on duration and hint. How etcd is read, what is printed and who is asked are given to
// Run. It runs in one goroutine.
package retire
