// Package retire decides whether a key of the ring may be destroyed, makes a plan of it, and carries exactly that plan
// out. [Judge] is pure: [Facts] that the command has gathered go in, a [Plan] with everything that speaks against it
// comes out. [Plan.Execute] asks for one thing to be destroyed and says what became of it on each token. Reading tokens,
// etcd and files, asking and printing belong to the command.
package retire
