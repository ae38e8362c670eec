// Package worker runs a token's PKCS#11 library in a process of its own. Libraries crash, abort, hang, print and fork;
// none of that reaches the program that asks one through a worker.
//
// # Processes
//
// A worker is the same program, started through /proc/self/exe with the argument Command; tests may name another one. Start starts one and returns
// the Client, which is p11.API over sockets and pipes; Main is the worker's side. The worker is hardened before it loads the
// library: no core file and no debugger, memory locked where that is allowed, SIGTERM, SIGINT, SIGHUP and SIGPIPE
// ignored, a process group of its own, standard output joined to standard error. It refuses to run when it inherited a
// descriptor that it does not know, or when the program that started it is another build. The environment is that of
// Environment. What the library prints is read by the program, and logged line by line within bounds. Signal handlers that
// the library has replaced are put right after each control request: what is ignored stays ignored, and the others run on a
// stack of their own, or the Go runtime would end the process. A SIGSEGV handler of the library stays.
//
// The program never sees a PIN: Login names a state of a PIN file, and the worker reads it.
//
// # Protocol
//
// Three descriptors: control, lanes and the critical lock.
//
// The control socket carries frames: four bytes of length and a JSON message, at most frameLimit bytes. At most maxAsked
// requests are under way at once, because one may hang; their answers come in any order. Everything that is not an operation
// of a session goes there (frame.go).
//
// A lane is a pair of pipes for each session, one for requests and one for answers (lane.go, and p11/lane.h for the layout
// and for why no socket). The program makes them and hands their other ends over on the lanes socket; the worker answers
// with a loop in C: read, C_...Init and the operation, write. The program's ends are on Go's network poller. Messages have
// at most 8 KiB, one request at a time.
//
// Both carry sequence, operation and generation, and the answer must repeat them. Each side treats the other as hostile:
// it checks every length before it uses one, and ends the worker when a message is not what it must be.
//
// # Ends
//
// The worker ends when the program does: it watches the lanes socket, and the kernel closes the other end of that however
// the program ends. A parent-death signal would not do: the end of a thread sends it too, and it would kill
// inside C_Login. A thread without Go does the same a little later, for a library that has the Go runtime hang.
//
// The critical lock is a lock on a file that only these two processes have. The worker holds it around C_Login and every
// call that makes or destroys a key, because SoftHSM, killed there, leaves an empty token file. The one who ends a worker takes
// the lock first, and kills while holding it. A call that hangs keeps the lock, so the wait is bounded by ConnectTimeout.
// The worker begins no such call when the program has ended.
//
// # Concurrency
//
// It depends on p11 and pinfile, on harden, hint and nonblock, and on crypto11 where it makes a key. A Client may be called from any number
// of goroutines, one at a time for each session.
package worker
