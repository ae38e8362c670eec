package softhsm

import "syscall"

// NoForks keeps this process from starting another until resume is called. A test that loads a PKCS#11 library itself needs
// it: SoftHSM opens its files without O_CLOEXEC, and a worker that is started meanwhile refuses to run with what it
// inherited. The program itself never loads a library beside workers. Start no process before resume.
func NoForks() (resume func()) {
	syscall.ForkLock.RLock()
	return syscall.ForkLock.RUnlock
}
