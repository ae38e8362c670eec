// Package hsm is the tokens: it makes of one or more PKCS#11 tokens the envelope.Tokens that the key ring
// works on, and keeps them usable through whatever a token or its library does.
//
//	Set            several tokens: the first that is healthy and holds the key does the work
//	Token          one token: operations with a deadline, retries, and recovery in the background
//	generation     one connection of a token: worker, slot, login, sessions and key handles, which live and die together
//	workerProcess  the token's library, in a process of its own (package worker), seen as p11.API
//
// # How it fits together
//
// Each token has a worker: a process that has loaded its library. This process loads none, and never holds a PIN. The
// supervisor of a token (supervise.go) makes a connection: it starts a worker if there is none that can be used
// (workers.go), finds the token's slot and logs in under the login lock, reads the ring, tries the profile, and publishes
// the generation (connect.go, keys.go).
//
// An operation (operate.go) takes a permit, of which there are maxSessions, and a session, which is a lane to the worker:
// a socket with a thread at its other end. It waits for the answer on its own goroutine, until callTimeout. A call that is
// overdue costs its session: that is closed, and its permit given back, when the call has returned. What is not an
// operation of a session goes over the worker's control socket: admin.go has the sequences on the admin session,
// ringview.go those on a session of their own.
//
// An error is classified by its return value (errorclass.go). A lost session is replaced and the operation tried once more;
// decide.go has what is done about every other error. In short: the operation is tried on a fresh session, then the
// supervisor checks the key (check.go, verify.go). It keeps the connection, suspends the key (suspend.go), seeks it in a new
// worker, or drops the connection and connects again, in the same worker where that is enough. A worker that has died, or in
// which a module says that it is not initialised, or will not close sessions, is followed by a new one: C_Finalize and
// C_Initialize in the same process is never tried.
//
// When half of the sessions hang, or some do and nothing has succeeded since, or too many keys are suspended or calls fail, a
// successor is started in a second worker; so it is when the library may not show all keys (swap.go). The first goes on
// serving as far as it can, and is ended when the successor serves; a token that refuses a second connection loses the first
// one before. There are two workers at most.
//
// An act that cannot be taken back (destroy.go, generate.go, binding.go) is looked after (act.go): by a look through its
// worker, or else by one through the next worker, when this one has been ended outside the call itself.
//
// # Rules
//
// Each is for a fault that was seen: no handle crosses a generation, because numbers are used again and can then name
// another key; one attempt to connect at a time; a call cannot be cancelled, so it is abandoned with its session, which
// counts against maxSessions until it returns; a worker is never killed inside C_Login or a call that makes or destroys a
// key, within connectTimeout; a PIN that was refused is never tried again; one login at a time on a machine.
//
// # Concurrency
//
// It depends on envelope, worker, p11, pinfile, guard and noncememory, and on filelock, growmap, hint and throttle. All methods of
// a Set and a Token may be called from any number of goroutines; Token's fields say which lock guards them. Each token has one
// supervisor, and what belongs to its attempt needs no lock.
package hsm
