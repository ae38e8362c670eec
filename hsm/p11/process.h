// What a worker's process needs of C: its signals, and an end that needs no Go.
#ifndef HSM_KMS_PROCESS_H
#define HSM_KMS_PROCESS_H

// die_by_signals has SIGSEGV, SIGABRT and their like end the process, instead of the Go runtime's account of them: what
// crashes in a worker is the module.
void die_by_signals(void);

// tame_signals undoes what a module may have done to the handlers: SIGTERM, SIGINT, SIGHUP and SIGPIPE are ignored again,
// and every handler runs on a stack of its own, without which the Go runtime ends the process when one reaches it.
void tame_signals(void);

// end_with starts a thread that ends the process limit_ms after the other end of the socket fd has been closed. It is for a
// process whose Go part cannot end it any more, because a module has its threads loop in a signal handler. 0: it runs.
int end_with(int fd, int limit_ms);

#endif
